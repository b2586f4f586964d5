// For the test that scripts/check-rooms sees what decides include a thread. Nothing compiles this.
#include "core/residency/policy/room.h"
