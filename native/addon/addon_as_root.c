// The functions of as_root.h for JavaScript. The first argument is the user namespace.
#include "addon.h"
#include "as_root.h"

// openAsRoot(namespace, folder, path, flags, resolve, mode): openat2(2).
static napi_value open_in_as_root(struct call *call, napi_env env) {
    char path[PATH_MAX];
    int namespace, folder;
    int64_t flags, resolve, mode;
    if (!take_fd(call, 0, &namespace) || !take_fd(call, 1, &folder) || !take_path(call, 2, path) || !take_number(call, 3, &flags) || !take_number(call, 4, &resolve) || !take_number(call, 5, &mode)) return misuse(env);
    return opened(call, open_as_root(namespace, folder, path, (uint64_t)flags, (uint64_t)resolve, (uint64_t)mode));
}
FUNCTION(open_in_as_root)

// xattrAsRoot(namespace, fd, name, bytes): getxattr(2). Any descriptor.
static napi_value get_xattr_as_root(struct call *call, napi_env env) {
    char path[SELF_FD_MAX], name[PATH_MAX];
    int namespace, fd;
    uint8_t *bytes;
    size_t length;
    if (!take_fd(call, 0, &namespace) || !take_fd(call, 1, &fd) || !take_path(call, 2, name) || !take_bytes(call, 3, &bytes, &length)) return misuse(env);
    return number(env, xattr_as_root(namespace, self_fd(path, fd), name, bytes, length));
}
FUNCTION(get_xattr_as_root)

// changeAsRoot(namespace, change, folder, name, other, text, a, b): see enum change. A name has no slash, so that no link is followed.
// An empty name stands for `folder` itself.
static napi_value change_file_as_root(struct call *call, napi_env env) {
    char name[PATH_MAX], text[PATH_MAX];
    int namespace, which, folder, other;
    int64_t a, b;
    if (!take_fd(call, 0, &namespace) || !take_fd(call, 1, &which) || !take_fd(call, 2, &folder) || !take_path(call, 3, name) || !take_fd(call, 4, &other) || !take_path(call, 5, text) || !take_number(call, 6, &a) || !take_number(call, 7, &b)) return misuse(env);
    if (strchr(name, '/') || (which != CHANGE_SYMLINK && strchr(text, '/'))) return misuse(env);
    if (!*name) self_fd(name, folder);
    return number(env, change_as_root(namespace, (enum change)which, folder, name, other, text, a, b));
}
FUNCTION(change_file_as_root)

// inotifyAsRoot(namespace, fd, mask): inotify(7), as inotify().
static napi_value watch_file_as_root(struct call *call, napi_env env) {
    char path[SELF_FD_MAX];
    int namespace, fd;
    int64_t mask;
    if (!take_fd(call, 0, &namespace) || !take_fd(call, 1, &fd) || !take_number(call, 2, &mask)) return misuse(env);
    return opened(call, watch_as_root(namespace, self_fd(path, fd), (uint32_t)mask));
}
FUNCTION(watch_file_as_root)
