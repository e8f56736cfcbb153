// A unit: everything that one plan makes. The supervisor owns it until all of it has been removed.
#pragma once

#include "connection.h"
#include "network.h"
#include "plan.h"
#include "protocol.h"

#include <stdbool.h>
#include <sys/resource.h>
#include <sys/types.h>

enum owned_kind { FOLDER, CGROUP, MOUNT_POINT };

// A folder that the unit has made, or has mounted on. The unit removes them in the reverse order.
struct owned {
    struct owned *next;
    enum owned_kind kind;
    bool discard; // what a mount has not written yet
    bool tried;   // a remover has tried to unmount it
    char path[];
};

// Messages to a network namespace, sent when the process has its id maps.
struct letter {
    struct letter *next;
    uint32_t operation;
    int socket;
    int64_t pid_at;
    size_t length;
    _Alignas(8) uint8_t messages[];
};

struct unit {
    struct unit *next;
    struct connection *connection; // whom to tell about it, or NULL
    uint32_t id;
    pid_t pid;     // of its process, until it has been waited for, else 0
    int pidfd;
    pid_t maker;   // the process that a `fork` ends, until it has been waited for, else 0
    int slot;      // the place of the successor's pid, until it has been read, else -1
    int failures;  // the supervisor's end of the child's pipe, -1 once it has been read
    int socket;    // the supervisor's end of the child's socket, or -1
    char *maps;    // the id maps that the child waits for, gid_map's behind the NUL of uid_map's, or NULL
    uint32_t maps_operation;
    struct letter *letters; // sent before the maps are written
    int mount;     // the root that the plan made, until the JavaScript process has it; that of a shared unit always
    bool shared;   // it ends with the supervisor alone
    int outputs[2]; // the read ends of a shared unit's output and errors, or -1
    int kept_open; // a descriptor that is closed with the unit, as it has a lock; or -1
    bool own_pids; // its process is the first of a pid namespace, all of which ends with it
    pid_t remover; // the process that removes a large folder, or 0
    struct owned *owned;
    bool failed;   // the plan failed: the unit is removed, then the failure is reported
    bool releasing;
    bool told;     // the JavaScript process knows that nothing of the unit is left
    int64_t deadline_ms; // removal is tried again until then
    struct failure failure;  // of the plan
    struct failure leftover; // of the removal
};

// The supervisor's own, which all units use.
struct supervisor {
    char *arguments; // of the command line, in one piece
    size_t arguments_length;
    int self;   // the executable
    int program; // a copy of the executable for containers (program.h), -1 until one is needed
    int null;   // /dev/null
    int pidfd;  // of the supervisor
    int lock;   // the lock of the state folder
    bool rootless; // in a user namespace of its own
    pid_t *successors; // see child.h; -1 for a free place, 0 for an awaited pid
    struct network network;
};

// Performs a plan up to its clone. Returns false and sets unit->failure if that fails; the unit must be removed all the same.
bool unit_start(struct unit *unit, struct supervisor *supervisor, const struct plan *plan, const int *descriptors);

// Takes the messages that the child has sent on its socket so far, and answers them.
void unit_listen(struct unit *unit);

// Takes the remaining messages after the child has closed its pipe. Returns true if the command has been executed; if unit->failure
// is set even so, the unit cannot be used.
bool unit_executed(struct unit *unit);

// Makes the process that a `fork` has made, which may have ended already, the unit's process.
void unit_find_successor(struct unit *unit, struct supervisor *supervisor);

// Kills all processes of the unit.
void unit_kill(struct unit *unit, struct supervisor *supervisor);

// Removes the empty cgroups after the process has ended. Returns true if the unit then owns nothing any more.
bool unit_settle(struct unit *unit);

// Removes everything that the unit owns. Returns 0 when nothing is left, 1 when it must be called again (a cgroup is not empty yet, or
// a remover is at work), -1 with unit->leftover when something could not be removed.
int unit_remove(struct unit *unit);

// Notes that the unit's remover has ended with a status of wait(2).
void unit_remover_done(struct unit *unit, int status);

// Gives up the folder that could not be removed, and notes it in unit->leftover.
void unit_give_up(struct unit *unit, int error);

void unit_free(struct unit *unit, struct supervisor *supervisor);
