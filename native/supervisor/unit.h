// A unit: what one plan makes, owned by the supervisor from the first folder to the last.
#pragma once

#include "network.h"
#include "plan.h"
#include "protocol.h"

#include <stdbool.h>
#include <sys/resource.h>
#include <sys/types.h>

// A folder that the unit has made, and removes in the reverse order.
struct owned {
    struct owned *next;
    bool cgroup;
    char path[];
};

struct unit {
    struct unit *next;
    uint32_t id;
    pid_t pid;     // 0 where there is no process, or it has been waited for
    int pidfd;
    pid_t maker;   // the child that a `fork` lets another go on for, until it has been waited for; else 0
    int slot;      // where the pid of that other is found, until it has been; -1 where none is awaited
    int failures;  // our end of the child's pipe, -1 once it has been read
    int socket;    // our end of the child's socket, where it has one
    char *maps;    // the id maps that the child waits for, uid_map's and gid_map's behind its NUL; NULL where there are none
    uint32_t maps_operation;
    int mount;     // the root that the plan made, until the JavaScript process has it
    int held;      // a descriptor that is closed with the unit, for what it locks; -1 where there is none
    bool own_pids; // its process is the first of a pid namespace, with which all of it ends
    pid_t remover; // the process that removes a large folder, or 0
    struct owned *owned;
    bool failed;   // the plan failed: to be removed, then reported
    bool releasing;
    bool told;     // that nothing of it is left
    int64_t deadline_ms; // until when its removal is tried again
    struct failure failure;  // of the plan
    struct failure leftover; // of the removal
};

// What all units share.
struct supervisor {
    char *arguments; // the supervisor's own, all behind each other
    size_t arguments_length;
    int self;   // the supervisor's own executable
    int program; // a copy of it for containers (program.h), -1 until one is needed
    int null;   // /dev/null
    int pidfd;  // of the supervisor
    int lock;   // what the state folder is locked by
    bool rootless; // in a user namespace of its own
    pid_t *successors; // see child.h; -1 is a place that is free, 0 one whose pid is awaited
    struct network network;
};

// Performs a plan up to its clone. Returns false with unit->failure set, the unit being there to be removed.
bool unit_start(struct unit *unit, struct supervisor *supervisor, const struct plan *plan, const int *descriptors);

// Takes what the child has said on its socket so far, and answers it.
void unit_listen(struct unit *unit);

// Takes the rest of it, when the child has closed its pipe: true if the command has been executed. Where unit->failure is
// set all the same, it cannot be used.
bool unit_executed(struct unit *unit);

// Where another process has gone on for the unit's, that one is the unit's from here on. It may have ended already.
void unit_find_successor(struct unit *unit, struct supervisor *supervisor);

// Kills what runs in the unit.
void unit_kill(struct unit *unit, struct supervisor *supervisor);

// After the process has ended: removes the cgroups that are empty. True when the unit then owns nothing any more.
bool unit_settle(struct unit *unit);

// Removes what the unit owns: 0 when nothing is left, 1 when it has to be called again (a cgroup is not empty yet, a
// remover is at work), -1 with unit->leftover when something cannot be removed and has been left.
int unit_remove(struct unit *unit);

// The unit's remover has ended, with a status as of wait(2).
void unit_remover_done(struct unit *unit, int status);

// Leaves the folder that could not be removed, and notes it.
void unit_give_up(struct unit *unit, int error);

void unit_free(struct unit *unit, struct supervisor *supervisor);
