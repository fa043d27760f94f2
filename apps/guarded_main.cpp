#include "apps/guarded_main.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <iostream>
#include <new>

#include "core/check.h"

namespace tessera {
namespace {

// A descriptor 0 to 2 that the caller closed would be the next file's, and what is printed would
// land in that file.
void open_standard_descriptors() {
  for (int fd : {0, 1, 2})
    if (fcntl(fd, F_GETFD) == -1 && ::open("/dev/null", O_RDWR) != fd)
      throw InputError(
          concat("standard descriptor ", fd, " is closed, and /dev/null cannot be opened"));
}

// Whether what was printed is lost, and not because nobody reads it any more.
bool output_is_lost() {
  std::cout.flush();
  if (std::cout) return false;
  pollfd output{STDOUT_FILENO, POLLOUT, 0};
  poll(&output, 1, 0);
  return (output.revents & (POLLERR | POLLHUP)) == 0;
}

int fail(const char* name, std::string message, int status) {
  std::ranges::replace(message, '\n', ' ');  // an error is one line
  std::cerr << name << ": error: " << message << '\n';
  return status;
}

}  // namespace

int guarded_main(const char* name, const std::function<int()>& body) {
  try {
    open_standard_descriptors();
    for (const int number : {SIGPIPE, SIGXFSZ}) std::signal(number, SIG_IGN);  // write() says so
    const int status = body();
    if (status == 0 && output_is_lost()) throw InputError("what was printed could not be written");
    return status;
  } catch (const UsageError& error) {
    return fail(name, error.what(), 2);
  } catch (const std::bad_alloc&) {
    return fail(name, "the machine has not enough memory for this", 1);
  } catch (const std::exception& error) {
    return fail(name, error.what(), 1);
  }
}

}  // namespace tessera
