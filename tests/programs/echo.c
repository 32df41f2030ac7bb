// Returns each UDP packet that arrives at the IPv4 ports in its arguments.
#include <arpa/inet.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

enum { MOST = 8 };

int main(int argc, char **argv) {
    struct pollfd sockets[MOST];
    int count = argc - 1;
    if (count < 1 || count > MOST)
        return 2;
    for (int i = 0; i < count; i++) {
        struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[i + 1]))};
        sockets[i] = (struct pollfd){.fd = socket(AF_INET, SOCK_DGRAM, 0), .events = POLLIN};
        if (sockets[i].fd < 0 || bind(sockets[i].fd, (struct sockaddr *)&here, sizeof here) != 0)
            return 1;
    }
    for (;;) {
        if (poll(sockets, (nfds_t)count, -1) < 0)
            return 1;
        for (int i = 0; i < count; i++) {
            char data[2048];
            struct sockaddr_in from;
            socklen_t length = sizeof from;
            if (!(sockets[i].revents & POLLIN))
                continue;
            ssize_t got = recvfrom(sockets[i].fd, data, sizeof data, 0, (struct sockaddr *)&from, &length);
            if (got >= 0)
                sendto(sockets[i].fd, data, (size_t)got, 0, (struct sockaddr *)&from, length);
        }
    }
}
