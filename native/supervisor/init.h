// What the supervisor's executable is inside a container, by the name that it is executed under.
#pragma once

// "berth-hold": holds namespaces open, as pid 1 of a new pid namespace, and waits for orphans.
// "berth-init OPERATION N PATH*N ARGUMENT...": runs the command (the first of the paths that is there) as its child,
// passes signals on to it, waits for orphans, and ends as it does.
// Descriptor 3 is the pipe for a failure of child.h: a command that cannot be executed is told there, as operation OPERATION.
// Returns only where the name is neither.
void init_run(int argc, char **argv);
