/* Tries to write into what is mounted at the directories it is given: as it is, and by clones of the mounts that lose
   their read-only flag, show other owners, or both. Says of each call whether it was done or which error it had, and of
   each write that succeeded "WROTE", on which kind of file system, and where.
   usage: clones DIRECTORY... */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

/* Of linux/mount.h, which cannot be had beside sys/mount.h everywhere, and the same on all architectures. */
enum { OPEN_TREE = 428, MOUNT_SETATTR = 442 };
enum { CLONE_TREE = 1, WHOLE = 0x8000 };
enum { READ_ONLY = 1, ID_MAPPED = 0x100000 };
#define OVERLAY 0x794c7630

struct attributes {
    uint64_t set, clear, propagation, users;
};

static const struct way {
    const char *name;
    uint64_t set, clear;
} WAYS[] = {
    {"as it is", 0, 0},
    {"read-only cleared", 0, READ_ONLY},
    {"mapped", ID_MAPPED, 0},
    {"mapped and read-only cleared", ID_MAPPED, READ_ONLY},
};

static int users = -1;
static long asked, refused, written;

static long judged(const char *call, const char *place, const char *how, long result) {
    asked++;
    refused += result < 0;
    printf("%s %s (%s): %s\n", call, place, how, result < 0 ? strerrorname_np(errno) : "done");
    return result;
}

static void put(const char *path, const char *text) {
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0) return;
    if (write(file, text, strlen(text)) < 0) printf("%s: %s\n", path, strerrorname_np(errno));
    close(file);
}

/* A user namespace in which root is whoever runs this: opened by a child that shares the table of open files. */
static int user_namespace(void) {
    char uids[40], gids[40];
    int status = 0;
    snprintf(uids, sizeof uids, "0 %d 1", (int)geteuid());
    snprintf(gids, sizeof gids, "0 %d 1", (int)getegid());
    /* Else the child would say once more what waits to be said. */
    fflush(stdout);
    pid_t child = syscall(SYS_clone, CLONE_FILES | CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (child == 0) {
        put("/proc/self/uid_map", uids);
        put("/proc/self/setgroups", "deny");
        put("/proc/self/gid_map", gids);
        int opened = open("/proc/self/ns/user", O_RDONLY);
        fflush(stdout);
        _exit(opened < 0 ? 255 : opened);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) == 255) return -1;
    return WEXITSTATUS(status);
}

static void write_one(int directory, const char *name, int flags, const char *place, const char *how) {
    struct statfs stat;
    int file = openat(directory, name, O_WRONLY | O_NONBLOCK | O_CLOEXEC | flags, 0644);
    if (file < 0 && errno == ENOENT) return;
    if (judged("open", place, how, file) < 0) return;
    if (judged("write", place, how, write(file, "x", 1)) == 1) {
        int overlay = fstatfs(file, &stat) == 0 && stat.f_type == OVERLAY;
        printf("WROTE %s %s of %s (%s)\n", overlay ? "overlay" : "other", name, place, how);
        written++;
    }
    close(file);
}

/* Into what every image has, so that other mounts, which may be written, are left alone. */
static void write_into(int directory, const char *place, const char *how) {
    if (faccessat(directory, "usr/bin/env", F_OK, 0) == 0) {
        write_one(directory, "usr/bin/env", O_APPEND, place, how);
        write_one(directory, "usr/bin/owned", O_CREAT, place, how);
    }
    write_one(directory, "env", O_APPEND, place, how);
}

static void attack(const char *place, const struct way *way, int whole) {
    struct attributes change = {way->set, way->clear, 0, users < 0 ? 0 : (uint64_t)users};
    char how[80];
    snprintf(how, sizeof how, "%s, %s", way->name, whole ? "with what is below" : "alone");
    int changed = way->set || way->clear;
    long clone = judged("clone", place, how, syscall(OPEN_TREE, AT_FDCWD, place, CLONE_TREE | O_CLOEXEC | whole));
    if (clone >= 0) {
        if (changed) judged("change", place, how, syscall(MOUNT_SETATTR, clone, "", AT_EMPTY_PATH | whole, &change, sizeof change));
        write_into(clone, place, how);
        close(clone);
    }
    if (!changed) return;
    /* Where it is mounted, and by a descriptor that is no clone. */
    strncat(how, ", in place", sizeof how - strlen(how) - 1);
    judged("change", place, how, syscall(MOUNT_SETATTR, AT_FDCWD, place, whole, &change, sizeof change));
    int directory = open(place, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return;
    judged("change by descriptor", place, how, syscall(MOUNT_SETATTR, directory, "", AT_EMPTY_PATH | whole, &change, sizeof change));
    write_into(directory, place, how);
    close(directory);
}

static void attack_all(int count, char **places) {
    users = judged("user namespace", "-", "made", user_namespace());
    for (int at = 0; at < count; at++)
        for (size_t way = 0; way < sizeof WAYS / sizeof *WAYS; way++) {
            attack(places[at], &WAYS[way], WHOLE);
            attack(places[at], &WAYS[way], 0);
        }
}

int main(int count, char **places) {
    attack_all(count - 1, places + 1);
    /* Once more with every capability over copies of the mounts. Nothing is run anew, so that it takes no mapped root,
       which a root without CAP_SETFCAP may not map. */
    if (judged("namespaces", "-", "nested", unshare(CLONE_NEWUSER | CLONE_NEWNS)) < 0) return 1;
    puts("NESTED");
    attack_all(count - 1, places + 1);
    printf("asked %ld, refused %ld, written %ld\n", asked, refused, written);
    return 0;
}
