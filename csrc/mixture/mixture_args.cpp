// The settings of the mixture map, checked for what would corrupt memory.
#include "mixture.h"

namespace fk {

MixtureSpec mixture_spec(int components, int kernel, int outer, double low, double high, bool shifts, double shrink,
                         double bound, bool inverse) {
  check_number("MixtureSpec: components", components, 1, MixtureSpec::kMostComponents);
  check_number("MixtureSpec: kernel", kernel, 0, 1);
  check_number("MixtureSpec: outer", outer, 0, 2);
  return {components, MixtureKernel(kernel), MixtureOuter(outer), low, high, shifts, shrink, bound, inverse};
}

}  // namespace fk
