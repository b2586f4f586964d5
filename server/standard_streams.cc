// Opens /dev/null for each of the descriptors 0, 1 and 2 that is closed when the program starts: the next file or
// socket to be opened would take its place, and what is meant for the log would be written into it. Before main and
// before the libraries start, for some of them open files of their own then.

#include <fcntl.h>
#include <unistd.h>

namespace {

void OpenStandardStreams() {
  int descriptor;  // The lowest that is free.
  do {
    descriptor = open("/dev/null", O_RDWR);
  } while (descriptor >= 0 && descriptor <= STDERR_FILENO);
  if (descriptor >= 0) close(descriptor);
}

[[gnu::section(".preinit_array"), gnu::used]] void (*const open_standard_streams)() = OpenStandardStreams;

}  // namespace
