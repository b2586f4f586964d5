// A wrong edge, for the test that scripts/check-rooms sees one. Nothing compiles this.
#include "core/residency/rider.h"
