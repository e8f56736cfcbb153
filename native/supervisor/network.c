#include "network.h"
#include "../common/util.h"

#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

static int own(void) {
    return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}

void network_init(struct network *network) {
    *network = (struct network){.home = own(), .spare = -1};
    // setns(2) requires CAP_SYS_ADMIN in the user namespace that owns the target, so a supervisor in a user namespace of its own
    // cannot return home.
    if (network->home >= 0 && setns(network->home, CLONE_NEWNET) < 0) close_descriptor(&network->home);
    network->wanted = network->home >= 0;
}

void network_make_spare(struct network *network) {
    network->wanted = false;
    if (unshare(CLONE_NEWNET) < 0) return;
    network->spare = own();
    network_leave(network);
}

bool network_enter(struct network *network) {
    network->wanted = network->home >= 0;
    if (network->spare < 0) return false;
    bool entered = setns(network->spare, CLONE_NEWNET) == 0;
    close_descriptor(&network->spare);
    return entered;
}

void network_leave(struct network *network) {
    if (setns(network->home, CLONE_NEWNET) < 0) abort(); // every later child would be in the container's namespace
}
