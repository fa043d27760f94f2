// Errors. Everything that goes wrong is an exception; nothing exits, nothing asserts.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace tessera {

// A broken contract or a failed call. what() carries message, expression, values, file and line.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Something given from outside is wrong: a file, a tensor in it, a missing device. what() is one
// line for the user that names the thing and both values. Programs end with status 1.
class InputError : public Error {
 public:
  using Error::Error;
};

// A device has not enough memory.
class OutOfMemory : public InputError {
 public:
  using InputError::InputError;
};

// A wrong flag, or flags that contradict each other. Programs end with status 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

// "a", 3, 'x' -> "a3x".
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

[[noreturn]] inline void throw_error(const char* expression, const char* file, int line,
                                     const std::string& message) {
  throw Error(
      concat(message, message.empty() ? "" : " ", "[", expression, "] (", file, ":", line, ")"));
}

}  // namespace tessera

// ENSURE(condition, parts of a message with the values...). Not called CHECK: Catch2 owns that
// name.
#define ENSURE(condition, ...)                                                                \
  do {                                                                                        \
    if (!(condition)) [[unlikely]]                                                            \
      ::tessera::throw_error(#condition, __FILE__, __LINE__, ::tessera::concat(__VA_ARGS__)); \
  } while (false)
