// The arguments and results of the functions of the addon.
#pragma once

#include "../common/descriptor.h"
#include "environment.h"
#include "loop.h"
#include "../common/util.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define ARGUMENTS_MAX 8
#define FDS_MAX DESCRIPTORS_MAX

struct call {
    napi_env env;
    napi_value argument[ARGUMENTS_MAX];
    struct environment *environment;
};

static inline bool begin(napi_env env, napi_callback_info info, struct call *call) {
    size_t count = ARGUMENTS_MAX;
    void *data;
    call->env = env;
    return napi_get_cb_info(env, info, &count, call->argument, NULL, &data) == napi_ok &&
           napi_get_instance_data(env, (void **)&call->environment) == napi_ok;
}

static inline napi_value number(napi_env env, int64_t value) {
    napi_value result;
    return napi_create_int64(env, value, &result) == napi_ok ? result : NULL;
}

static inline napi_value pair(napi_env env, int64_t a, int64_t b) {
    napi_value result;
    if (napi_create_array_with_length(env, 2, &result) != napi_ok) return NULL;
    napi_set_element(env, result, 0, number(env, a));
    napi_set_element(env, result, 1, number(env, b));
    return result;
}

// The result for a new descriptor or -errno. The descriptor is closed with the environment.
static inline napi_value opened(struct call *call, int64_t fd) {
    return number(call->env, environment_note(call->environment, fd, OURS));
}

static inline napi_value opened_pair(struct call *call, int64_t a, int64_t b) {
    return pair(call->env, environment_note(call->environment, a, OURS), environment_note(call->environment, b, OURS));
}

static inline napi_value misuse(napi_env env) {
    napi_throw_type_error(env, NULL, "berth: wrong arguments for a function of the native addon; this is a bug of Berth");
    return NULL;
}

static inline bool take_number(struct call *call, int index, int64_t *out) {
    return napi_get_value_int64(call->env, call->argument[index], out) == napi_ok;
}

static inline bool take_fd(struct call *call, int index, int *out) {
    return napi_get_value_int32(call->env, call->argument[index], out) == napi_ok;
}

static inline bool take_bytes(struct call *call, int index, uint8_t **bytes, size_t *length) {
    napi_typedarray_type type;
    void *data;
    if (napi_get_typedarray_info(call->env, call->argument[index], &type, length, &data, NULL, NULL) != napi_ok || type != napi_uint8_array) return false;
    *bytes = data;
    return true;
}

// A path as text, or as bytes if a name is not UTF-8. The TypeScript code refuses a path that is longer than PATH_MAX or has a NUL.
static inline bool take_path(struct call *call, int index, char out[PATH_MAX]) {
    uint8_t *bytes;
    size_t length;
    if (napi_get_value_string_utf8(call->env, call->argument[index], out, PATH_MAX, &length) == napi_ok) return strlen(out) == length;
    if (!take_bytes(call, index, &bytes, &length) || length >= PATH_MAX) return false;
    memcpy(out, bytes, length);
    out[length] = '\0';
    return strlen(out) == length;
}

static inline bool take_fds(struct call *call, int index, int fds[FDS_MAX], uint32_t *count) {
    if (napi_get_array_length(call->env, call->argument[index], count) != napi_ok || *count > FDS_MAX) return false;
    for (uint32_t k = 0; k < *count; k++) {
        napi_value element;
        if (napi_get_element(call->env, call->argument[index], k, &element) != napi_ok) return false;
        if (napi_get_value_int32(call->env, element, &fds[k]) != napi_ok) return false;
    }
    return true;
}

#define FUNCTION(name)                                                                                       \
    napi_value js_##name(napi_env env, napi_callback_info info) {                                            \
        struct call call;                                                                                    \
        if (!begin(env, info, &call)) return misuse(env);                                                    \
        return name(&call, env);                                                                             \
    }

// A path to the file of a descriptor, for system calls that take no descriptor of O_PATH. The kernel jumps to the file, even if it is a
// symbolic link.
#define SELF_FD_MAX sizeof "/proc/self/fd/-2147483648"

static inline const char *self_fd(char out[SELF_FD_MAX], int fd) {
    snprintf(out, SELF_FD_MAX, "/proc/self/fd/%d", fd);
    return out;
}

// Defined in addon_as_root.c.
napi_value js_open_in_as_root(napi_env env, napi_callback_info info);
napi_value js_get_xattr_as_root(napi_env env, napi_callback_info info);
napi_value js_change_file_as_root(napi_env env, napi_callback_info info);
napi_value js_watch_file_as_root(napi_env env, napi_callback_info info);

// Of socket.c.
napi_value js_socket_in(napi_env env, napi_callback_info info);
napi_value js_connect_socket(napi_env env, napi_callback_info info);
napi_value js_connect_result(napi_env env, napi_callback_info info);
napi_value js_bind_socket(napi_env env, napi_callback_info info);
napi_value js_listen_socket(napi_env env, napi_callback_info info);
napi_value js_accept_socket(napi_env env, napi_callback_info info);
napi_value js_socket_address(napi_env env, napi_callback_info info);
napi_value js_end_socket(napi_env env, napi_callback_info info);
napi_value js_disown(napi_env env, napi_callback_info info);

// Of packet.c.
napi_value js_capture_packets(napi_env env, napi_callback_info info);
napi_value js_take_packets(napi_env env, napi_callback_info info);
napi_value js_packet_statistics(napi_env env, napi_callback_info info);
