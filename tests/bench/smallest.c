/* The smallest launcher that still makes a container: user (unless root), mount, pid and ipc namespaces, an overlay over one
 * lower directory, /proc, pivot_root, exec. A lower bound to compare with; it enforces nothing.
 * usage: smallest LOWER SCRATCH COMMAND [ARGUMENT...] */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void check(int bad, const char *what) {
    if (bad) {
        fprintf(stderr, "smallest: %s: %s\n", what, strerror(errno));
        _exit(125);
    }
}

static void put(const char *path, const char *format, unsigned id) {
    char text[64];
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    int length = snprintf(text, sizeof text, format, id, id);
    check(fd < 0 || write(fd, text, (size_t)length) != length, path);
    close(fd);
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: smallest LOWER SCRATCH COMMAND [ARGUMENT...]\n");
        return 125;
    }
    unsigned uid = getuid(), gid = getgid();
    int flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | (uid ? CLONE_NEWUSER : 0);
    pid_t pid = (pid_t)syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    check(pid < 0, "clone");
    if (pid == 0) {
        char options[8192];
        if (uid) {
            put("/proc/self/setgroups", "deny", 0);
            put("/proc/self/uid_map", "%u %u 1", uid);
            put("/proc/self/gid_map", "%u %u 1", gid);
        }
        check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
        check(mount("tmpfs", argv[2], "tmpfs", 0, NULL), "tmpfs");
        check(chdir(argv[2]), "chdir");
        check(mkdir("upper", 0755) || mkdir("work", 0755) || mkdir("root", 0755), "mkdir");
        snprintf(options, sizeof options, "lowerdir=%s,upperdir=upper,workdir=work%s", argv[1], uid ? ",userxattr" : "");
        check(mount("overlay", "root", "overlay", 0, options), "overlay");
        check(chdir("root"), "chdir root");
        check(mkdir("proc", 0755) && errno != EEXIST, "mkdir proc");
        check(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "proc");
        check((int)syscall(SYS_pivot_root, ".", "."), "pivot_root");
        check(umount2(".", MNT_DETACH), "umount");
        execv(argv[3], argv + 3);
        check(1, argv[3]);
    }
    int status;
    check(waitpid(pid, &status, 0) < 0, "wait");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
