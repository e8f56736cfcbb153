// The configuration of a filesystem context (fsopen(2)).
#pragma once

#include "../common/failure.h"
#include "plan.h"

// An option "key=value" or "key".
int mount_option(int fs, const char *option, struct failure *failure);

// Applies the options (NULL for none), creates the superblock and returns a detached mount of it.
int mount_create(int fs, const union field *options, unsigned attributes, struct failure *failure);
