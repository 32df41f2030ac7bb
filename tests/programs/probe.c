/* Tries actions that need special system calls, and prints a line for each. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
static void say(const char *what, long result) {
    printf("%s: %s\n", what, result >= 0 ? "works" : strerrorname_np(errno));
}
int main(void) {
    say("inet", socket(AF_INET, SOCK_STREAM, 0));
    say("unix", socket(AF_UNIX, SOCK_STREAM, 0));
    say("vsock stream", socket(AF_VSOCK, SOCK_STREAM, 0));
    say("vsock seqpacket", socket(AF_VSOCK, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    say("vsock high bits", syscall(SYS_socket, (1L << 32) | AF_VSOCK, SOCK_STREAM, 0));
    int pair[2];
    say("vsock pair", socketpair(AF_VSOCK, SOCK_STREAM, 0, pair));
    say("io_uring", syscall(SYS_io_uring_setup, 1, 0));
    say("bpf", syscall(SYS_bpf, 0, 0, 0));
    say("kexec_load", syscall(SYS_kexec_load, 0, 0, 0, 0));
    say("no such call", syscall(999999));
    fflush(stdout);
    return 0;
}
