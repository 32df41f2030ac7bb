/* Tries to get out of a container whose kernel is the host's. Prints what works, and nothing else.
 *   escape PIDS PORT      tries each thing once; PIDS are processes of the host, separated by commas; PORT names an abstract socket of the host
 *   escape exe SECONDS    looks for programs of other processes that are none of the container's, and tries to write to them */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int tried;

static void try(const char *what, const char *on, long result) {
    tried++;
    if (result >= 0) {
        printf("OPEN: %s %s\n", what, on);
    }
}

/* Opening is enough: the kernel checks nothing more for most of these. */
static void try_write(const char *path) { try("write", path, open(path, O_WRONLY | O_CLOEXEC)); }

static void processes_of_the_host(char *pids) {
    for (char *pid = strtok(pids, ","); pid; pid = strtok(0, ",")) {
        char here[64], path[64];
        pid_t other = atoi(pid);
        struct iovec local = {here, sizeof here}, remote = {(void *)0x400000, sizeof here};
        /* Its number may be that of a process of the container. */
        if (other == getpid() || other < 64) {
            continue;
        }
        try("signal", pid, kill(other, 0));
        try("trace", pid, ptrace(PTRACE_ATTACH, other, 0, 0));
        try("read memory of", pid, process_vm_readv(other, &local, 1, &remote, 1, 0));
        try("have a descriptor of", pid, syscall(SYS_pidfd_open, other, 0));
        snprintf(path, sizeof path, "/proc/%d", other);
        try("see", path, access(path, F_OK));
    }
}

/* CVE-2024-21626: a descriptor of a directory of the host, or a working directory in one. */
static void descriptors(void) {
    char path[4096], fd[64];
    for (int number = 3; number < 1024; number++) {
        try("find open", "a descriptor", fcntl(number, F_GETFD));
        snprintf(fd, sizeof fd, "/proc/self/fd/%d", number);
        try("go to", fd, chdir(fd));
    }
    ssize_t length = readlink("/proc/self/cwd", path, sizeof path - 1);
    try("be", "outside of its root", length > 0 && path[0] == '/' ? -1 : 0);
    for (int number = 0; number < 3; number++) {
        struct stat seen;
        try("have a directory as", "a standard stream", fstat(number, &seen) == 0 && S_ISDIR(seen.st_mode) ? 0 : -1);
    }
}

/* The classic: a root directory below the working directory. */
static void out_of_the_root(void) {
    struct stat before, after;
    if (fork() == 0) {
        stat("/", &before);
        mkdir("/tmp/below", 0700);
        int up = chroot("/tmp/below");
        for (int i = 0; i < 64 && up == 0; i++) {
            up = chdir("..");
        }
        up = up == 0 ? chroot(".") : up;
        int is_out = up == 0 && stat("/", &after) == 0 && (after.st_dev != before.st_dev || after.st_ino != before.st_ino);
        _exit(is_out);
    }
    int status = 0;
    wait(&status);
    try("leave", "the root directory", WIFEXITED(status) && WEXITSTATUS(status) == 0 ? -1 : 0);
}

static void files_by_handle(void) {
    struct {
        struct file_handle head;
        unsigned char bytes[8];
    } root = {{8, 1}, {2, 0, 0, 0, 0, 0, 0, 0}};
    static const char *places[] = {"/", "/etc/hosts", "/dev/shm", "/proc"};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        int at = open(places[i], O_RDONLY);
        try("open by its handle a file at", places[i], syscall(SYS_open_by_handle_at, at, &root, O_RDONLY));
        close(at);
    }
}

static void kernel(void) {
    static const char *files[] = {"/proc/sys/kernel/core_pattern",
                                  "/proc/sys/kernel/modprobe",
                                  "/proc/sys/kernel/panic",
                                  "/proc/sys/vm/drop_caches",
                                  "/proc/sys/fs/binfmt_misc/register",
                                  "/proc/sysrq-trigger",
                                  "/proc/irq/default_smp_affinity",
                                  "/proc/kmsg",
                                  "/proc/scsi/scsi",
                                  "/sys/kernel/uevent_helper",
                                  "/sys/kernel/mm/transparent_hugepage/enabled",
                                  "/sys/power/state",
                                  "/sys/fs/cgroup/release_agent",
                                  "/sys/fs/cgroup/memory/release_agent",
                                  "/sys/fs/cgroup/memory/cgroup.procs",
                                  "/sys/fs/cgroup/cgroup.procs",
                                  "/sys/fs/cgroup/pids/pids.max",
                                  "/sys/fs/cgroup/devices/devices.allow"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        try_write(files[i]);
    }
    int core = open("/proc/kcore", O_RDONLY);
    try("read", "/proc/kcore", core >= 0 && read(core, (char[1]){0}, 1) == 1 ? 0 : -1);
    struct timespec past = {1, 0};
    try("set", "the clock", clock_settime(CLOCK_REALTIME, &past));
    try("load", "a module", syscall(SYS_init_module, "", 0, ""));
    try("load", "a kernel", syscall(SYS_kexec_load, 0, 0, 0, 0));
    try("swap on", "/tmp", swapon("/tmp", 0));
    try("read", "the kernel's log", syscall(SYS_syslog, 3, (char[16]){0}, 16));
    try("make", "a program of the kernel", syscall(SYS_bpf, 0, (char[128]){2, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4}, 64));
    try("set up", "an io_uring", syscall(SYS_io_uring_setup, 1, (char[256]){0}));
    struct perf_event_attr counted = {.type = PERF_TYPE_SOFTWARE, .size = sizeof counted};
    try("measure", "all processes", syscall(SYS_perf_event_open, &counted, -1, 0, -1, 0));
    try("be", "less nice", setpriority(PRIO_PROCESS, 0, -20));
    void *huge = mmap(0, 2 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    try("map", "a huge page", huge == MAP_FAILED ? -1 : 0);
    try("read", "the keyring of the user's session", syscall(SYS_keyctl, KEYCTL_READ, KEY_SPEC_USER_SESSION_KEYRING, 0, 0, 0));
}

static void devices(void) {
    static const struct {
        const char *name;
        mode_t type;
        unsigned major, minor;
    } all[] = {{"/tmp/mem", S_IFCHR, 1, 1}, {"/tmp/kmsg", S_IFCHR, 1, 11},    {"/tmp/tun", S_IFCHR, 10, 200},  {"/tmp/fuse", S_IFCHR, 10, 229},
               {"/tmp/kvm", S_IFCHR, 10, 232}, {"/tmp/loop", S_IFBLK, 7, 0}, {"/tmp/sda", S_IFBLK, 8, 0}, {"/tmp/vda", S_IFBLK, 254, 0},
               {"/tmp/console", S_IFCHR, 5, 1}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        mknod(all[i].name, all[i].type | 0666, makedev(all[i].major, all[i].minor));
        try("open the device", all[i].name, open(all[i].name, O_RDWR));
    }
}

static void mounts(void) {
    mkdir("/tmp/at", 0700);
    static const struct {
        const char *what, *kind, *options;
    } all[] = {{"all", "cgroup", "none,name=escape"}, {"/dev/loop0", "ext4", ""}, {"none", "debugfs", ""},
               {"none", "tracefs", ""},        {"none", "securityfs", ""},            {"none", "bpf", ""},        {"none", "devtmpfs", ""},
               {"none", "binfmt_misc", ""},    {"none", "configfs", ""}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        /* What a user namespace may mount is its own. */
        if (strcmp(all[i].kind, "bpf") && strcmp(all[i].kind, "binfmt_misc")) {
            try("mount", all[i].kind, mount(all[i].what, "/tmp/at", all[i].kind, 0, all[i].options));
        }
    }
    /* With the right to mount a container has a whole /proc and its own groups, and yet no parameter of the kernel and no release agent. */
    if (mount("none", "/tmp/at", "proc", 0, 0) == 0) {
        try_write("/tmp/at/sys/kernel/core_pattern");
        try_write("/tmp/at/sys/kernel/modprobe");
        try_write("/tmp/at/sysrq-trigger");
        umount("/tmp/at");
    }
    mount("none", "/proc/sys", 0, MS_REMOUNT | MS_BIND, 0);
    umount2("/proc/sys", MNT_DETACH);
    try_write("/proc/sys/kernel/core_pattern");
    try_write("/proc/sys/kernel/panic");
    try_write("/proc/sysrq-trigger");
    static const char *groups[] = {"memory", "devices", "pids", "cpu", ""};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        if (mount("none", "/tmp/at", *groups[i] ? "cgroup" : "cgroup2", 0, groups[i]) == 0) {
            try("find groups above", "its own", access("/tmp/at/magikvm", F_OK));
            try("find groups above", "its own", access("/tmp/at/_supervisor", F_OK));
            try_write("/tmp/at/release_agent");
            int allow = open("/tmp/at/devices.allow", O_WRONLY);
            try("allow", "all devices", allow >= 0 ? write(allow, "a", 1) : -1);
            close(allow);
            umount("/tmp/at");
        }
    }
}

static void namespaces(void) {
    if (fork() == 0) {
        int status = 0;
        if (unshare(CLONE_NEWUSER) == 0) {
            int map = open("/proc/self/uid_map", O_WRONLY);
            /* Ids that the pod does not have. */
            status = map >= 0 && write(map, "0 70000 1\n", 10) > 0;
        }
        _exit(status);
    }
    int status = 0;
    wait(&status);
    try("map", "ids of the host", WIFEXITED(status) && WEXITSTATUS(status) == 0 ? -1 : 0);
}

static void sockets(const char *port) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int length = snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "magikvm-%s", port);
    socklen_t size = offsetof(struct sockaddr_un, sun_path) + 1 + length;
    try("connect to", "an abstract socket of the host", connect(fd, (struct sockaddr *)&address, size));
    close(fd);
    static const char *paths[] = {"/run/agent.sock", "/agent.sock", "/run/pod/agent.sock", "/run/magikvm", "/composite", "/bundles", "/images"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        try("find", paths[i], access(paths[i], F_OK));
    }
}

/* CVE-2019-5736: the program of the process that enters the container is there as /proc/PID/exe. */
static int others_programs(double seconds) {
    time_t end = time(0) + seconds;
    int held[64], count = 0, found = 0;
    while (time(0) < end) {
        DIR *dir = opendir("/proc");
        for (struct dirent *entry; (entry = readdir(dir));) {
            char path[300], link[300] = "";
            snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
            if (atoi(entry->d_name) == 0 || readlink(path, link, sizeof link - 1) < 0) {
                continue;
            }
            if (!strstr(link, "magikvm") && !strstr(link, "memfd:") && !strstr(link, "/self/fd")) {
                continue;
            }
            found++;
            int fd = open(path, O_RDONLY | O_CLOEXEC);
            if (fd >= 0 && count < 64) {
                held[count++] = fd;
            }
        }
        closedir(dir);
        for (int i = 0; i < count; i++) {
            char path[64];
            snprintf(path, sizeof path, "/proc/self/fd/%d", held[i]);
            /* Busy while it is executed, and writable after that. */
            int fd = open(path, O_WRONLY | O_CLOEXEC);
            if (fd >= 0 && write(fd, "\177", 1) == 1) {
                printf("OPEN: write to the program that entered\n");
                return 7;
            }
            if (fd >= 0) {
                close(fd);
            }
            if (fd >= 0 || errno != ETXTBSY) {
                close(held[i]);
                held[i--] = held[--count];
            }
        }
    }
    printf("seen %s\n", found ? "some" : "none");
    return 7;
}

/* How many huge pages of 2 MiB can be used, at most 64. */
static int huge_pages(void) {
    int used = 0;
    while (used < 64) {
        char *page = mmap(0, 2 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
        if (page == MAP_FAILED) {
            break;
        }
        page[0] = 1;
        used++;
    }
    printf("%d\n", used);
    return 0;
}

int main(int count, char **arguments) {
    setvbuf(stdout, 0, _IOLBF, 4096);
    if (count == 3 && strcmp(arguments[1], "exe") == 0) {
        return others_programs(atof(arguments[2]));
    }
    if (count == 2 && strcmp(arguments[1], "pages") == 0) {
        return huge_pages();
    }
    if (count != 3) {
        fprintf(stderr, "escape: wrong arguments\n");
        return 2;
    }
    descriptors();
    processes_of_the_host(arguments[1]);
    files_by_handle();
    kernel();
    devices();
    mounts();
    namespaces();
    sockets(arguments[2]);
    out_of_the_root();
    printf("%d tried\n", tried);
    return 7;
}
