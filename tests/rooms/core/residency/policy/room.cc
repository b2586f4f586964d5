// As policy.h, which includes its header.
#include <thread>
