/*
 * The init of a kernel that has as modules what a guest image's kernel has built in: loads /modules/00.ko, 01.ko and so on, and becomes /init.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv, char **environment)
{
    (void)argc;
    for (int number = 0;; number++) {
        char path[32];
        snprintf(path, sizeof path, "/modules/%02d.ko", number);
        int module = open(path, O_RDONLY | O_CLOEXEC);
        if (module < 0)
            break;
        if (syscall(SYS_finit_module, module, "", 0) != 0)
            dprintf(STDERR_FILENO, "%s: %s\n", path, strerror(errno));
        close(module);
    }
    execve("/init", argv, environment);
    return 1;
}
