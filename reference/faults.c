/* Makes the n-th call of some kind fail, or sends a signal at it; counts calls on chosen paths only.
 *
 * Preloaded (LD_PRELOAD) into a process that calls faults_arm. A call counts if its path, or that
 * of its descriptor, lies under the chosen folder.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, READ, WRITE, SYNC, RENAME, MKDIR, REMOVE, CLOSE, LOCK, KINDS };
enum { COUNT, FAIL, FAIL_ON, SHORT, SIGNAL, SIGNAL_ON };

#define MOST_DESCRIPTORS 4096
static char counted[MOST_DESCRIPTORS];
static char root[PATH_MAX];
static size_t root_length;
static unsigned kinds;
static long wanted, seen;
static int action, number;
static int *report; /* shared with the process that asks: how many calls there were */

void faults_arm(const char *folder, unsigned which, long nth, int what, int value, int *place)
{
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    kinds = which;
    wanted = nth;
    action = what;
    number = value;
    report = place;
    seen = 0;
}

/* Where memory is limited, a stack that cannot grow is a crash: let it grow before. */
void faults_grow_stack(void)
{
    volatile char room[4 << 20];
    for (size_t i = 0; i < sizeof room; i += 1024)
        room[i] = 0;
}

static int is_under(int directory, const char *path)
{
    if (!root_length || !path)
        return 0;
    if (path[0] != '/') {
        if (directory >= 0 && directory < MOST_DESCRIPTORS)
            return counted[directory];
        return 0;
    }
    return !strncmp(path, root, root_length)
        && (path[root_length] == '/' || !path[root_length]);
}

static int has(int descriptor)
{
    return root_length && descriptor >= 0 && descriptor < MOST_DESCRIPTORS && counted[descriptor];
}

static void mark(int descriptor, int value)
{
    if (descriptor >= 0 && descriptor < MOST_DESCRIPTORS)
        counted[descriptor] = (char)value;
}

/* Count a call. 0: let it pass; 1: fail, errno is set; 2: let it do half. */
static int strikes(int kind)
{
    if (!(kinds >> kind & 1))
        return 0;
    long n = ++seen;
    if (report)
        report[0] = (int)n;
    int is_on = action == FAIL_ON || action == SIGNAL_ON;
    if (action == COUNT || n < wanted || (n > wanted && !is_on))
        return 0;
    if (report && !report[1])
        report[1] = 1 + kind;
    switch (action) {
    case FAIL:
    case FAIL_ON:
        errno = number;
        return 1;
    case SHORT:
        return 2;
    default:
        raise(number);
        return 0;
    }
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define OPENING(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(name); \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
        va_end(list); \
        if (!is_under(AT_FDCWD, path)) \
            return real(path, flags, mode); \
        if (strikes(OPEN) == 1) \
            return -1; \
        int descriptor = real(path, flags, mode); \
        mark(descriptor, 1); \
        return descriptor; \
    }
OPENING(open)
OPENING(open64)

#define OPENING_AT(name) \
    int name(int directory, const char *path, int flags, ...) \
    { \
        REAL(name); \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
        va_end(list); \
        if (!is_under(directory, path)) \
            return real(directory, path, flags, mode); \
        if (strikes(OPEN) == 1) \
            return -1; \
        int descriptor = real(directory, path, flags, mode); \
        mark(descriptor, 1); \
        return descriptor; \
    }
OPENING_AT(openat)
OPENING_AT(openat64)

DIR *opendir(const char *path)
{
    REAL(opendir);
    if (!is_under(AT_FDCWD, path))
        return real(path);
    return strikes(OPEN) == 1 ? NULL : real(path);
}

int closedir(DIR *directory)
{
    REAL(closedir);
    mark(dirfd(directory), 0);
    return real(directory);
}

int fcntl64(int descriptor, int command, ...)
{
    REAL(fcntl64);
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    int found = real(descriptor, command, argument);
    if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
        mark(found, has(descriptor));
    return found;
}

int fcntl(int descriptor, int command, ...)
{
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    return fcntl64(descriptor, command, argument);
}

#define CALL(type, name, kind, condition, parameters, arguments) \
    type name parameters \
    { \
        REAL(name); \
        if (!(condition)) \
            return real arguments; \
        return strikes(kind) == 1 ? -1 : real arguments; \
    }

#define TRANSFER(name, kind, pointer, parameters, arguments) \
    ssize_t name parameters \
    { \
        REAL(name); \
        if (!has(descriptor)) \
            return real arguments; \
        int strike = strikes(kind); \
        if (strike == 1) \
            return -1; \
        if (strike == 2) \
            size = (size + 1) / 2; \
        return real arguments; \
    }

TRANSFER(read, READ, void, (int descriptor, void *data, size_t size), (descriptor, data, size))
TRANSFER(pread, READ, void, (int descriptor, void *data, size_t size, off_t at),
         (descriptor, data, size, at))
TRANSFER(pread64, READ, void, (int descriptor, void *data, size_t size, off64_t at),
         (descriptor, data, size, at))
TRANSFER(write, WRITE, void, (int descriptor, const void *data, size_t size),
         (descriptor, data, size))
TRANSFER(pwrite, WRITE, void, (int descriptor, const void *data, size_t size, off_t at),
         (descriptor, data, size, at))
TRANSFER(pwrite64, WRITE, void, (int descriptor, const void *data, size_t size, off64_t at),
         (descriptor, data, size, at))

CALL(int, fsync, SYNC, has(descriptor), (int descriptor), (descriptor))
CALL(int, fdatasync, SYNC, has(descriptor), (int descriptor), (descriptor))
CALL(int, flock, LOCK, has(descriptor), (int descriptor, int operation), (descriptor, operation))
CALL(int, rename, RENAME, is_under(AT_FDCWD, old), (const char *old, const char *new), (old, new))
CALL(int, renameat, RENAME, is_under(from, old),
     (int from, const char *old, int to, const char *new), (from, old, to, new))
CALL(int, renameat2, RENAME, is_under(from, old),
     (int from, const char *old, int to, const char *new, unsigned flags),
     (from, old, to, new, flags))
CALL(int, mkdir, MKDIR, is_under(AT_FDCWD, path), (const char *path, mode_t mode), (path, mode))
CALL(int, mkdirat, MKDIR, is_under(at, path), (int at, const char *path, mode_t mode),
     (at, path, mode))
CALL(int, unlink, REMOVE, is_under(AT_FDCWD, path), (const char *path), (path))
CALL(int, unlinkat, REMOVE, is_under(at, path), (int at, const char *path, int flags),
     (at, path, flags))
CALL(int, rmdir, REMOVE, is_under(AT_FDCWD, path), (const char *path), (path))

/* A close that fails has closed all the same, as on Linux. */
int close(int descriptor)
{
    REAL(close);
    if (!has(descriptor))
        return real(descriptor);
    int strike = strikes(CLOSE), value = errno;
    mark(descriptor, 0);
    int found = real(descriptor);
    if (strike == 1) {
        errno = value;
        return -1;
    }
    return found;
}
