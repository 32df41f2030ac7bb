// A client of the network that prints how many nanoseconds it took, and how many connections broke:
//   download ADDRESS PORT BYTES     a connection that asks the server of tests/src/net.rs for BYTES, to its end
//   upload ADDRESS PORT BYTES       a connection that sends BYTES to that server, to the server's confirmation
//   connections ADDRESS PORT COUNT  connections one after the other, each to the end of the server's answer
//   name ADDRESS NAME               a DNS query for an A record, to its answer
// `ask SOCKET METHOD PATH` prints the answer to an HTTP request over a Unix socket instead.
// `wait` does nothing until a signal ends it. Addresses are those of IPv4.
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 64 * 1024, DNS_PORT = 53, DNS_SECONDS = 5, HEADER = 12 };

static char data[CHUNK];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int open_to(const char *address, int port, int type) {
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    int made = socket(AF_INET, type, 0);
    if (made < 0 || inet_pton(AF_INET, address, &there.sin_addr) != 1)
        fail("socket");
    if (connect(made, (struct sockaddr *)&there, sizeof there) != 0)
        fail("connect");
    return made;
}

static void send_all(int to, const char *bytes, size_t length) {
    while (length > 0) {
        ssize_t sent = write(to, bytes, length);
        if (sent <= 0)
            fail("write");
        bytes += sent;
        length -= (size_t)sent;
    }
}

// Reads to the end and returns the number of bytes, or -1 if the connection broke.
static long long drain(int from) {
    long long all = 0;
    for (;;) {
        ssize_t got = read(from, data, sizeof data);
        if (got < 0)
            return -1;
        if (got == 0)
            return all;
        all += got;
    }
}

static void transfer(const char *address, int port, const char *verb, long long bytes) {
    char request[64];
    int server = open_to(address, port, SOCK_STREAM);
    int length = snprintf(request, sizeof request, "%s %lld\n", verb, bytes);
    send_all(server, request, (size_t)length);
    long long left = strcmp(verb, "take") == 0 ? bytes : 0;
    while (left > 0) {
        size_t part = left < CHUNK ? (size_t)left : CHUNK;
        send_all(server, data, part);
        left -= (long long)part;
    }
    // The server's address comes before its answer.
    long long got = drain(server);
    if (got < (strcmp(verb, "send") == 0 ? bytes : 1)) {
        fprintf(stderr, "the connection ended after %lld bytes\n", got);
        exit(1);
    }
    close(server);
}

// The query of RFC 1035, section 4, whose identifier only has to be the same in the answer.
static void ask(const char *address, const char *name) {
    unsigned char query[512] = {0x12, 0x34, 1, 0, 0, 1}, answer[2048];
    size_t at = HEADER;
    for (const char *label = name; *label;) {
        size_t length = strcspn(label, ".");
        if (length > 63 || at + length + 6 > sizeof query)
            exit(2);
        query[at++] = (unsigned char)length;
        memcpy(query + at, label, length);
        at += length;
        label += length + (label[length] == '.');
    }
    const unsigned char end[] = {0, 0, 1, 0, 1};
    memcpy(query + at, end, sizeof end);
    at += sizeof end;
    int server = open_to(address, DNS_PORT, SOCK_DGRAM);
    struct timeval limit = {.tv_sec = DNS_SECONDS};
    setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (send(server, query, at, 0) < 0)
        fail("send");
    ssize_t got = recv(server, answer, sizeof answer, 0);
    if (got < HEADER)
        fail("the name server");
    // Its identifier, no error code, and at least one record.
    if (memcmp(answer, query, 2) != 0 || (answer[3] & 15) != 0 || answer[6] + answer[7] == 0) {
        fprintf(stderr, "%s has no address\n", name);
        exit(1);
    }
    close(server);
}

// An HTTP request over a Unix socket, whose answer is printed to its end.
static void ask_socket(const char *path, const char *method, const char *target) {
    char request[1024];
    struct sockaddr_un there = {.sun_family = AF_UNIX};
    int server = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(there.sun_path, sizeof there.sun_path, "%s", path);
    if (server < 0 || connect(server, (struct sockaddr *)&there, sizeof there) != 0)
        fail("connect");
    int length = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: pod\r\n\r\n", method, target);
    send_all(server, request, (size_t)length);
    for (ssize_t got; (got = read(server, data, sizeof data)) > 0;)
        send_all(STDOUT_FILENO, data, (size_t)got);
    close(server);
}

int main(int argc, char **argv) {
    if (argc == 5 && strcmp(argv[1], "ask") == 0) {
        ask_socket(argv[2], argv[3], argv[4]);
        return 0;
    }
    if (argc == 2 && strcmp(argv[1], "wait") == 0)
        return pause();
    int broken = 0;
    long long begun = now();
    if (argc == 4 && strcmp(argv[1], "name") == 0) {
        ask(argv[2], argv[3]);
    } else if (argc == 5 && strcmp(argv[1], "download") == 0) {
        transfer(argv[2], atoi(argv[3]), "send", atoll(argv[4]));
    } else if (argc == 5 && strcmp(argv[1], "upload") == 0) {
        transfer(argv[2], atoi(argv[3]), "take", atoll(argv[4]));
    } else if (argc == 5 && strcmp(argv[1], "connections") == 0) {
        for (int left = atoi(argv[4]); left > 0; left--) {
            int server = open_to(argv[2], atoi(argv[3]), SOCK_STREAM);
            broken += drain(server) <= 0;
            close(server);
        }
    } else {
        return 2;
    }
    printf("%lld %d\n", now() - begun, broken);
    return 0;
}
