#include "network.h"

#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

static int own(void) {
    return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}

void network_init(struct network *network) {
    *network = (struct network){.home = own(), .spare = -1};
    // Allowed for one that has CAP_SYS_ADMIN where its namespace was made, and not in a user namespace of its own.
    if (network->home >= 0 && setns(network->home, CLONE_NEWNET) < 0) {
        close(network->home);
        network->home = -1;
    }
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
    close(network->spare);
    network->spare = -1;
    return entered;
}

void network_leave(struct network *network) {
    if (setns(network->home, CLONE_NEWNET) < 0) abort(); // every later child would be in there
}
