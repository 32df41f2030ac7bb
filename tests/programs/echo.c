// Returns each UDP packet that arrives at the IPv4 ports in its arguments. With `flows ADDRESS PORT COUNT` it sends that number of packets
// instead, each from another port.
#include <arpa/inet.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 8 };

static int flows(const char *address, int port, int count) {
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    if (inet_pton(AF_INET, address, &there.sin_addr) != 1)
        return 2;
    for (int i = 0; i < count; i++) {
        struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((unsigned short)(20000 + i))};
        int made = socket(AF_INET, SOCK_DGRAM, 0);
        if (made < 0 || bind(made, (struct sockaddr *)&here, sizeof here) != 0)
            return 1;
        if (sendto(made, "x", 1, 0, (struct sockaddr *)&there, sizeof there) != 1)
            return 1;
        close(made);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 5 && strcmp(argv[1], "flows") == 0)
        return flows(argv[2], atoi(argv[3]), atoi(argv[4]));
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
