// A filesystem context (fsopen(2)) being configured.
#pragma once

#include "../common/failure.h"
#include "plan.h"

int mount_option(int fs, const char *option, struct failure *failure);

// Applies the options (none where NULL), creates the superblock and returns a detached mount of it.
int mount_create(int fs, const union field *options, unsigned attributes, struct failure *failure);
