#include "lease.h"
#include "../common/util.h"

#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

int lease_listen(struct lease *lease, struct failure *failure) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = LEASE_SOCKET};
    lease->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (lease->listener < 0) return fail(failure, "socket");
    if (bind(lease->listener, (struct sockaddr *)&address, sizeof address) < 0) return fail(failure, "bind");
    return listen(lease->listener, SOMAXCONN) < 0 ? fail(failure, "listen") : 0;
}

int lease_accept(const struct lease *lease) {
    for (;;) {
        cleanup_close int socket = accept4(lease->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (socket < 0) return -1;
        struct ucred peer;
        socklen_t length = sizeof peer;
        // The folder keeps other users out; a container that it was mounted into could reach the socket.
        if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == geteuid()) return steal_fd(&socket);
    }
}

bool lease_shut(struct lease *lease) {
    if (lease->lock < 0) lease->lock = open(lease->gate, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    // Without the file nobody can find this supervisor.
    if (lease->lock < 0 || flock(lease->lock, LOCK_EX | LOCK_NB) == 0) return true;
    close_descriptor(&lease->lock);
    return false;
}

void lease_open(struct lease *lease) {
    close_descriptor(&lease->lock);
}

void lease_remove(struct lease *lease) {
    struct stat locked, there;
    if (lease->lock < 0 || fstat(lease->lock, &locked) < 0 || lstat(lease->gate, &there) < 0) return;
    if (locked.st_dev == there.st_dev && locked.st_ino == there.st_ino) unlink(lease->gate);
}
