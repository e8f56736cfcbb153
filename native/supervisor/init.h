// The supervisor's executable inside a container. Its name (argv[0]) selects what it does.
#pragma once

// "berth-hold": holds namespaces open, as pid 1 of a new pid namespace, and waits for orphans.
// "berth-init OPERATION N PATH*N ARGUMENT...": runs the command (the first of the paths that exists) as its child, forwards signals
// to it, waits for orphans, and ends with the command's exit status.
// Descriptor 3 is the pipe of child.h: the failure to execute the command is written there, as operation OPERATION.
// Returns for any other name.
void init_run(int argc, char **argv);
