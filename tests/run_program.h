// Runs one of this build's programs and waits for it.
#pragma once

#include <sys/wait.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "core/check.h"
#include "tests/paths.h"
#include "tests/temp_dir.h"

namespace tessera {

struct Finished {
  int status = 0;  // exit status; 128 + signal when one ended it
  std::string out, err;
};

// "it's" -> 'it'\''s', one word for the shell.
inline std::string shell_word(const std::string& text) {
  std::string word = "'";
  for (const char c : text) word += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return word + "'";
}

// name: "train", "denoise". `prefix` goes before it on the shell's line ("cd /tmp &&").
inline Finished run_program(const std::string& name, const std::vector<std::string>& arguments,
                            const std::string& prefix = "") {
  const TempDir dir;
  std::string line = concat(prefix, ' ', shell_word(concat(bin_dir(), '/', name)));
  for (const std::string& argument : arguments) line += concat(' ', shell_word(argument));
  line += concat(" </dev/null >", (dir / "out").string(), " 2>", (dir / "err").string());
  const int status = std::system(line.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_text(dir / "out"),
          read_text(dir / "err")};
}

}  // namespace tessera
