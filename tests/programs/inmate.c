/* Replaces the VMM in its jail, and acts like a guest that has taken its VMM over.
 *   inmate isolation SECRET PODS STORE PORT PID   tries each thing, and prints those that work
 *   inmate call NAME                          makes one system call, and prints the outcome */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/reboot.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int tried, open_doors;

static void try(const char *what, const char *on, long result) {
    tried++;
    if (result >= 0) {
        open_doors++;
        fprintf(stderr, "inmate: OPEN: %s %s\n", what, on);
    }
}

static void must(const char *what, int holds) { try(what, "", holds ? -1 : 0); }

static void try_file(const char *path) {
    struct stat seen;
    try("look at", path, stat(path, &seen));
    try("read", path, open(path, O_RDONLY | O_CLOEXEC));
    try("write", path, open(path, O_WRONLY | O_CLOEXEC));
}

static void try_dir(const char *path) {
    DIR *dir = opendir(path);
    try("list", path, dir ? 0 : -1);
}

static void try_unix(const char *path, int is_abstract) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    size_t length = strlen(path);
    if (length + 1 >= sizeof address.sun_path) {
        length = sizeof address.sun_path - 2;
    }
    memcpy(address.sun_path + is_abstract, path, length);
    socklen_t size = offsetof(struct sockaddr_un, sun_path) + length + 1;
    try("connect to", path, connect(fd, (struct sockaddr *)&address, is_abstract ? size : sizeof address));
    close(fd);
}

static void try_tcp(int port) {
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    try("connect to", "127.0.0.1", connect(fd, (struct sockaddr *)&four, sizeof four));
    fd = socket(AF_INET6, SOCK_STREAM, 0);
    try("connect to", "::1", connect(fd, (struct sockaddr *)&six, sizeof six));
    four.sin_addr.s_addr = htonl(0x01010101);
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    try("send to", "1.1.1.1", sendto(fd, "x", 1, 0, (struct sockaddr *)&four, sizeof four));
    try("open", "a raw socket", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    try("open", "a packet socket", socket(AF_PACKET, SOCK_RAW, 0));
}

static void try_others(pid_t pid) {
    char byte;
    struct iovec here = {&byte, 1}, there = {&byte, 1};
    try("signal", "a process outside", kill(pid, 0));
    try("trace", "a process outside", ptrace(PTRACE_ATTACH, pid, 0, 0));
    try("read the memory of", "a process outside", process_vm_readv(pid, &here, 1, &there, 1, 0));
    try("open", "a process outside", syscall(SYS_pidfd_open, pid, 0));
    try("signal", "all processes", kill(-1, 0));
    for (pid_t other = 2; other < 4096; other++) {
        if (kill(other, 0) == 0) {
            try("signal", "some process", 0);
        }
    }
}

static void try_privileges(void) {
    struct timeval now = {0, 0};
    char handle[sizeof(struct file_handle) + 8] = {8};
    try("mount", "tmpfs", mount("none", ".", "tmpfs", 0, ""));
    try("remount", "/", mount(0, "/", 0, MS_REMOUNT | MS_BIND, ""));
    try("unmount", "/", umount2("/", MNT_DETACH));
    try("change", "the root", chroot("/"));
    try("join", "a namespace", syscall(SYS_setns, 0, 0));
    try("make", "a mount namespace", unshare(CLONE_NEWNS));
    try("make", "a network namespace", unshare(CLONE_NEWNET));
    try("set", "the host name", sethostname("x", 1));
    try("set", "the clock", settimeofday(&now, 0));
    try("ask for", "a restart", syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_CAD_OFF, 0));
    try("load", "a kernel module", syscall(SYS_init_module, "", 0, ""));
    try("load", "another kernel", syscall(SYS_kexec_load, 0, 0, 0, 0));
    try("swap", "to a file", syscall(SYS_swapon, "/x", 0));
    try("read", "the kernel's log", syscall(SYS_syslog, 5, 0, 0));
    try("become", "another user", setresuid(1, 1, 1));
    try("become", "another group", setresgid(1, 1, 1));
    try("open", "a file by its handle", syscall(SYS_open_by_handle_at, AT_FDCWD, handle, O_RDONLY));
    try("make", "a device", mknod("device", S_IFCHR | 0666, makedev(1, 1)));
    try("make", "a file in /", open("/file", O_CREAT | O_WRONLY, 0666));
    try("make", "a directory in /", mkdir("/directory", 0777));
    try("set up", "an io_uring", syscall(SYS_io_uring_setup, 1, 0));
    try("handle", "page faults", syscall(SYS_userfaultfd, 0));
    try("be", "less nice", setpriority(PRIO_PROCESS, 0, -20));
}

static void look_at_itself(void) {
    char name[64] = "";
    struct rlimit core = {2, 2};
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct caps[2] = {{1, 1, 1}, {1, 1, 1}};
    syscall(SYS_capget, &header, caps);
    must("capabilities", !(caps[0].effective | caps[0].permitted | caps[0].inheritable | caps[1].effective | caps[1].permitted |
                           caps[1].inheritable));
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; cap++) {
        must("a capability to be had", prctl(PR_CAPBSET_READ, cap) == 0);
    }
    must("new privileges", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
    must("no filter", prctl(PR_GET_SECCOMP) == 2);
    getrlimit(RLIMIT_CORE, &core);
    must("core dumps", core.rlim_max <= 1);
    gethostname(name, sizeof name);
    must("the host's name", strcmp(name, "jail") == 0);
    must("another number than the first", getpid() == 1);
}

static long shell(void) {
    char *const arguments[] = {"sh", "-c", "exit 0", 0}, *const nothing[] = {0};
    int status = 1;
    pid_t child = fork();
    if (child == 0) {
        execve("/bin/sh", arguments, nothing);
        _exit(1);
    }
    return waitpid(child, &status, 0) == child && status == 0 ? 0 : -1;
}

static int isolation(char **arguments) {
    static const char *files[] = {"/etc/shadow", "/etc/passwd", "/etc/hostname", "/proc/sys/kernel/core_pattern", "/proc/1/environ",
                                  "/proc/self/mem", "/sys/kernel/uevent_helper", "/dev/mem", "/dev/vda", "/dev/sda", "/dev/fuse",
                                  "/dev/net/tun", "/dev/vsock", "/dev/tty", "/dev/ptmx", "/dev/console", "/dev/vhost-vsock"};
    static const char *dirs[] = {"/root", "/home", "/tmp", "/var/lib", "/run", "/sys", "/proc", "/boot", "/etc/ssl"};
    char path[8192];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        try_file(files[i]);
    }
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        /* A parent directory of a mounted path exists, and contains only that path. */
        DIR *dir = opendir(dirs[i]);
        int entries = 0;
        for (struct dirent *entry; dir && (entry = readdir(dir));) {
            entries += entry->d_name[0] != '.';
        }
        must(dirs[i], entries <= 2);
    }
    try_file(arguments[0]);
    snprintf(path, sizeof path, "%s/default_other", arguments[1]);
    try_dir(path);
    snprintf(path, sizeof path, "%s/default_other/vm/agent.sock", arguments[1]);
    try_unix(path, 0);
    snprintf(path, sizeof path, "%s/default_other/pod.json", arguments[1]);
    try_file(path);
    try_file("../pod.json");
    try_file("../undo.jsonl");
    try_unix("../control.sock", 0);
    try_dir(arguments[2]);
    snprintf(path, sizeof path, "magikvm-%s", arguments[3]);
    try_unix(path, 1);
    try_tcp(atoi(arguments[3]));
    try_others(atoi(arguments[4]));
    try_privileges();
    try("execute", "/bin/sh", shell());
    look_at_itself();
    fprintf(stderr, "inmate: %d tried, %d open\n", tried, open_doors);
    return 7;
}

#define CALL(name) {#name, SYS_##name}
static const struct {
    const char *name;
    long number;
} calls[] = {
    CALL(ptrace), CALL(mount), CALL(umount2), CALL(unshare), CALL(setns), CALL(bpf), CALL(perf_event_open), CALL(add_key), CALL(keyctl),
    CALL(request_key), CALL(open_by_handle_at), CALL(process_vm_readv), CALL(kexec_load), CALL(init_module), CALL(chroot),
    CALL(pivot_root), CALL(execve), CALL(execveat), CALL(setuid), CALL(io_uring_enter), CALL(fanotify_init), CALL(personality),
    CALL(io_uring_setup), CALL(userfaultfd), CALL(clone3),
};

static int call(const char *name) {
    long result = -1;
    errno = EINVAL;
    if (strcmp(name, "socket") == 0) {
        result = socket(AF_INET, SOCK_STREAM, 0);
    } else if (strcmp(name, "clone") == 0) {
        result = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    } else {
        for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
            if (strcmp(calls[i].name, name) == 0) {
                result = syscall(calls[i].number, 0, 0, 0, 0, 0, 0);
            }
        }
    }
    fprintf(stderr, "inmate: %s: %s\n", name, result >= 0 ? "works" : strerrorname_np(errno));
    return 7;
}

int main(int count, char **arguments) {
    setvbuf(stderr, 0, _IOLBF, 4096);
    if (count == 7 && strcmp(arguments[1], "isolation") == 0) {
        return isolation(arguments + 2);
    }
    if (count == 3 && strcmp(arguments[1], "call") == 0) {
        return call(arguments[2]);
    }
    fprintf(stderr, "inmate: wrong arguments\n");
    return 2;
}
