/* Records what a process does to the files under one folder, in order, and makes one chosen call fail.
 *
 * Preloaded into the program under test. `shim_begin` names the folder and the log; from then on each call that
 * changes a file or a name under the folder, or makes such a change durable, is carried out and then logged, under
 * one mutex: the log's order is the order of the calls. `shim_mark` puts the program's own word into the same order.
 *
 * What cannot be recorded (a writable shared mapping, a copy inside the kernel, a hard link) is logged as UNSEEN, and
 * the reader of the log refuses it: a gap would make every later check a guess. LMDB's lock file is left out; it
 * is mapped, holds nothing durable, and is made anew by whoever opens the environment alone.
 *
 * A record, little-endian: op u8, failed u8, reserved u16, fd or flags u32, offset u64, three lengths u32, then three
 * byte strings: path, second path, data.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    OP_MARK = 1, OP_OPEN, OP_WRITE, OP_SYNC, OP_TRUNCATE, OP_RENAME, OP_UNLINK, OP_MKDIR, OP_RMDIR, OP_UNSEEN,
    OP_FAULT, OP_FORGET,
};
enum { FAIL_CLEAN = 0, FAIL_SHORT = 1 };  /* how a chosen write fails: with nothing, or with half of it written */

#define FDS 1024
#define LOG_FD_MIN 900

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static char root[PATH_MAX];
static size_t root_len;
static struct { char tracked; char direct; } fds[FDS];  /* direct: opened with O_DSYNC or O_SYNC */
static uint64_t calls;       /* that could have failed, since the last shim_fail */
static uint64_t fail_at;     /* 0: none */
static uint64_t fail_count;  /* so many calls from fail_at on */
static int fail_errno, fail_how;
static uint64_t free_bytes = UINT64_MAX;

#define NEXT(name) ({ static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })
#define LOCK int saved_errno; pthread_mutex_lock(&mutex)
#define UNLOCK (saved_errno = errno, pthread_mutex_unlock(&mutex), errno = saved_errno)

/* -- the log -------------------------------------------------------------------------------------------------- */

static void put(int op, int failed, uint32_t number, uint64_t offset, const char *path, const char *path2,
                const struct iovec *data, int count, size_t data_len) {
    if (log_fd < 0)
        return;
    uint32_t path_len = path ? strlen(path) : 0, path2_len = path2 ? strlen(path2) : 0;
    unsigned char head[28] = {op, failed != 0};
    uint32_t lengths[3] = {path_len, path2_len, (uint32_t)data_len};
    memcpy(head + 4, &number, 4);
    memcpy(head + 8, &offset, 8);
    memcpy(head + 16, lengths, 12);
    size_t total = sizeof head + path_len + path2_len + data_len;
    char *record = malloc(total), *at = record;
    if (!record)
        abort();
    at = mempcpy(at, head, sizeof head);
    at = mempcpy(at, path ? path : "", path_len);
    at = mempcpy(at, path2 ? path2 : "", path2_len);
    for (int i = 0; i < count && data_len; i++) {
        size_t part = data[i].iov_len < data_len ? data[i].iov_len : data_len;
        at = mempcpy(at, data[i].iov_base, part);
        data_len -= part;
    }
    for (size_t done = 0; done < total;) {
        ssize_t n = syscall(SYS_write, log_fd, record + done, total - done);
        if (n < 0)
            abort();
        done += n;
    }
    free(record);
}

/* The absolute path of (dir_fd, path), or 0 if it is not under the folder. */
static int under(int dir_fd, const char *path, char *absolute) {
    if (log_fd < 0 || !path)
        return 0;
    if (path[0] == '/') {
        if (strlen(path) >= PATH_MAX)
            return 0;
        strcpy(absolute, path);
    } else {
        char link[64], folder[PATH_MAX];
        ssize_t n;
        if (dir_fd == AT_FDCWD)
            strcpy(link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", dir_fd);
        n = readlink(link, folder, sizeof folder - 1);
        if (n < 0 || (size_t)n + strlen(path) + 2 > PATH_MAX)
            return 0;
        char *end = mempcpy(absolute, folder, n);
        *end = '/';
        strcpy(end + 1, path);
    }
    size_t len = strlen(absolute);
    while (len > 1 && absolute[len - 1] == '/')
        absolute[--len] = 0;
    if (strncmp(absolute, root, root_len) || (absolute[root_len] && absolute[root_len] != '/'))
        return 0;
    return !(len >= 8 && !strcmp(absolute + len - 8, "lock.mdb"));
}

static int tracked(int fd) { return log_fd >= 0 && fd >= 0 && fd < FDS && fds[fd].tracked; }

/* Whether this call is the chosen one; counts it, and logs that it is. */
static int chosen(const char *what) {
    calls++;
    int fails = fail_at && calls >= fail_at && calls < fail_at + fail_count;
    if (fails)
        put(OP_FAULT, 1, 0, 0, what, NULL, NULL, 0, 0);
    return fails;
}

/* -- what the program under test calls ------------------------------------------------------------------------ */

int shim_begin(const char *folder, const char *log_path) {
    int fd = syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || strlen(folder) >= PATH_MAX)
        return -1;
    strcpy(root, folder);
    root_len = strlen(root);
    memset(fds, 0, sizeof fds);
    log_fd = fcntl(fd, F_DUPFD_CLOEXEC, LOG_FD_MIN);
    syscall(SYS_close, fd);
    return log_fd < 0 ? -1 : 0;
}

void shim_mark(const char *data, size_t len) {
    LOCK;
    struct iovec part = {(void *)data, len};
    put(OP_MARK, 0, 0, 0, NULL, NULL, &part, 1, len);
    UNLOCK;
}

/* The nth recordable call from now on fails, and count - 1 after it. nth = 0: none. */
void shim_fail(uint64_t nth, uint64_t count, int error, int how) {
    LOCK;
    calls = 0, fail_at = nth, fail_count = count, fail_errno = error, fail_how = how;
    UNLOCK;
}

/* What statvfs says is free on the disk. UINT64_MAX: the truth. */
void shim_free(uint64_t bytes) { free_bytes = bytes; }

/* -- opening and closing -------------------------------------------------------------------------------------- */

static int opened(int dir_fd, const char *path, int flags, mode_t mode) {
    char absolute[PATH_MAX];
    LOCK;
    int known = under(dir_fd, path, absolute);
    int changes = known && flags & (O_CREAT | O_TRUNC);
    int fd;
    if (changes && chosen("open")) {
        errno = fail_errno;
        fd = -1;
    } else {
        fd = syscall(SYS_openat, dir_fd, path, flags | O_LARGEFILE, mode);
    }
    if (fd >= 0 && fd < FDS) {
        fds[fd].tracked = known;
        fds[fd].direct = (flags & O_DSYNC) != 0;
        if (known)
            put(OP_OPEN, 0, fd, flags, absolute, NULL, NULL, 0, 0);
    }
    UNLOCK;
    return fd;
}

static mode_t mode_of(int flags, va_list rest) {
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name)                                             \
    int name(const char *path, int flags, ...) {               \
        va_list rest;                                          \
        va_start(rest, flags);                                 \
        mode_t mode = mode_of(flags, rest);                    \
        va_end(rest);                                          \
        return opened(AT_FDCWD, path, flags, mode);            \
    }
#define OPENAT(name)                                           \
    int name(int dir_fd, const char *path, int flags, ...) {   \
        va_list rest;                                          \
        va_start(rest, flags);                                 \
        mode_t mode = mode_of(flags, rest);                    \
        va_end(rest);                                          \
        return opened(dir_fd, path, flags, mode);              \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    LOCK;
    if (fd >= 0 && fd < FDS)
        fds[fd].tracked = 0;
    int result = syscall(SYS_close, fd);
    UNLOCK;
    return result;
}

/* -- writing -------------------------------------------------------------------------------------------------- */

static size_t size_of(const struct iovec *parts, int count) {
    size_t size = 0;
    for (int i = 0; i < count; i++)
        size += parts[i].iov_len;
    return size;
}

/* offset < 0: at the descriptor's own position, which moves. */
static ssize_t written(int fd, const struct iovec *parts, int count, off_t offset) {
    LOCK;
    ssize_t result;
    size_t size = size_of(parts, count);
    off_t at = offset;
    if (!tracked(fd)) {
        UNLOCK;
        return offset < 0 ? syscall(SYS_writev, fd, parts, count)
                          : syscall(SYS_pwritev, fd, parts, count, offset, 0);
    }
    if (offset < 0) {
        at = lseek(fd, 0, SEEK_CUR);
        if (fcntl(fd, F_GETFL) & O_APPEND)
            at = lseek(fd, 0, SEEK_END);
    }
    int fails = chosen("write");
    if (fails && !(fail_how == FAIL_SHORT && size > 1) && !fds[fd].direct) {
        errno = fail_errno;
        result = -1;
    } else {
        /* A descriptor that syncs each write leaves what it could not sync in the page cache, like any failed sync. */
        struct iovec half = {parts[0].iov_base, size / 2 < parts[0].iov_len ? size / 2 : parts[0].iov_len};
        int cut = fails && fail_how == FAIL_SHORT;
        const struct iovec *from = cut ? &half : parts;
        int used = cut ? 1 : count;
        result = offset < 0 ? syscall(SYS_writev, fd, from, used)
                            : syscall(SYS_pwritev, fd, from, used, offset, 0);
        if (result > 0)
            put(OP_WRITE, fails && !cut, fd, at, NULL, NULL, from, used, result);
        if (fails && !cut) {
            errno = fail_errno;
            result = -1;
        }
    }
    UNLOCK;
    return result;
}

ssize_t write(int fd, const void *data, size_t size) {
    struct iovec part = {(void *)data, size};
    if (!tracked(fd))
        return syscall(SYS_write, fd, data, size);
    return written(fd, &part, 1, -1);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    struct iovec part = {(void *)data, size};
    return written(fd, &part, 1, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return pwrite(fd, data, size, offset); }

ssize_t writev(int fd, const struct iovec *parts, int count) { return written(fd, parts, count, -1); }

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return written(fd, parts, count, offset);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    return written(fd, parts, count, offset);
}

static void unseen(int fd, const char *what) {
    LOCK;
    if (tracked(fd))
        put(OP_UNSEEN, 0, fd, 0, what, NULL, NULL, 0, 0);
    UNLOCK;
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags) {
    unseen(fd, "pwritev2");
    return NEXT(pwritev64v2)(fd, parts, count, offset, flags);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    unseen(out, "copy_file_range");
    return NEXT(copy_file_range)(in, from, out, to, size, flags);
}

int posix_fallocate64(int fd, off64_t offset, off64_t size) {
    unseen(fd, "posix_fallocate");
    return NEXT(posix_fallocate64)(fd, offset, size);
}

static void *mapped(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
    if (protection & PROT_WRITE && flags & MAP_SHARED && !(flags & MAP_ANONYMOUS))
        unseen(fd, "mmap");
    return (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
}

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
    return mapped(address, size, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t size, int protection, int flags, int fd, off64_t offset) {
    return mapped(address, size, protection, flags, fd, offset);
}

static int truncated(int fd, off_t size) {
    LOCK;
    int result;
    if (tracked(fd) && chosen("truncate")) {
        errno = fail_errno;
        result = -1;
    } else {
        result = syscall(SYS_ftruncate, fd, size);
        if (!result && tracked(fd))
            put(OP_TRUNCATE, 0, fd, size, NULL, NULL, NULL, 0, 0);
    }
    UNLOCK;
    return result;
}

int ftruncate(int fd, off_t size) { return truncated(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncated(fd, size); }

/* -- making it durable ---------------------------------------------------------------------------------------- */

static int synced(int fd, long number) {
    LOCK;
    int result, known = tracked(fd), fails = known && chosen("sync");
    if (fails) {
        errno = fail_errno;
        result = -1;
    } else {
        result = syscall(number, fd);
    }
    if (known)
        put(OP_SYNC, result != 0, fd, 0, NULL, NULL, NULL, 0, 0);
    UNLOCK;
    return result;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

int posix_fadvise64(int fd, off64_t offset, off64_t size, int advice) {
    LOCK;
    if (tracked(fd) && advice == POSIX_FADV_DONTNEED)
        put(OP_FORGET, 0, fd, offset, NULL, NULL, NULL, 0, 0);
    UNLOCK;
    return NEXT(posix_fadvise64)(fd, offset, size, advice);
}

/* -- names ---------------------------------------------------------------------------------------------------- */

static int named(int op, int dir_fd, const char *path, int dir_fd2, const char *path2, long number, long extra) {
    char absolute[PATH_MAX], absolute2[PATH_MAX];
    LOCK;
    int known = under(dir_fd, path, absolute), known2 = path2 && under(dir_fd2, path2, absolute2);
    int result;
    if ((known || known2) && chosen("name")) {
        errno = fail_errno;
        result = -1;
    } else {
        result = path2 ? syscall(number, dir_fd, path, dir_fd2, path2, extra) : syscall(number, dir_fd, path, extra);
        if (!result && known && (known2 || !path2))
            put(op, 0, 0, 0, absolute, path2 ? absolute2 : NULL, NULL, 0, 0);
        else if (!result && (known || known2))
            put(OP_UNSEEN, 0, 0, 0, "a name that leaves or enters the folder", NULL, NULL, 0, 0);
    }
    UNLOCK;
    return result;
}

int rename(const char *from, const char *to) {
    return named(OP_RENAME, AT_FDCWD, from, AT_FDCWD, to, SYS_renameat2, 0);
}
int renameat(int from_fd, const char *from, int to_fd, const char *to) {
    return named(OP_RENAME, from_fd, from, to_fd, to, SYS_renameat2, 0);
}
int link(const char *from, const char *to) {
    return named(OP_UNSEEN, AT_FDCWD, from, AT_FDCWD, to, SYS_linkat, 0);
}
int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    return named(OP_UNSEEN, from_fd, from, to_fd, to, SYS_linkat, flags);
}
int unlink(const char *path) { return named(OP_UNLINK, AT_FDCWD, path, 0, NULL, SYS_unlinkat, 0); }
int unlinkat(int dir_fd, const char *path, int flags) {
    return named(flags & AT_REMOVEDIR ? OP_RMDIR : OP_UNLINK, dir_fd, path, 0, NULL, SYS_unlinkat, flags);
}
int rmdir(const char *path) { return named(OP_RMDIR, AT_FDCWD, path, 0, NULL, SYS_unlinkat, AT_REMOVEDIR); }
int mkdir(const char *path, mode_t mode) { return named(OP_MKDIR, AT_FDCWD, path, 0, NULL, SYS_mkdirat, mode); }
int mkdirat(int dir_fd, const char *path, mode_t mode) {
    return named(OP_MKDIR, dir_fd, path, 0, NULL, SYS_mkdirat, mode);
}

/* -- how full the disk is ------------------------------------------------------------------------------------- */

int statvfs64(const char *path, struct statvfs64 *found) {
    int result = NEXT(statvfs64)(path, found);
    if (!result && free_bytes != UINT64_MAX)
        found->f_bavail = found->f_bfree = free_bytes / found->f_frsize;
    return result;
}
