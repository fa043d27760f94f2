#include "core/simt/options.h"

#include "core/check.h"

namespace tessera::simt {

const Profile& profile_of(int capability) {
  constexpr size_t kb = 1024;
  static constexpr Profile profiles[] = {
      {75, 40, 64 * kb}, {80, 108, 163 * kb}, {89, 128, 99 * kb}, {90, 132, 227 * kb}};
  for (const Profile& profile : profiles)
    if (profile.capability == capability) return profile;
  throw InputError(concat("the host model has no profile ", capability, ": 75, 80, 89 or 90"));
}

Options& options() {
  static Options value;
  return value;
}

}  // namespace tessera::simt
