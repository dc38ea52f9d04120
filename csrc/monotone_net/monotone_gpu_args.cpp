// What a GPU is given besides for a call of a monotone network, checked.
#include "monotone_net.h"

namespace fk {

std::vector<int64_t> checked_widths(std::vector<int64_t> widths) {
  const int64_t n = int64_t(widths.size()) - 1;
  check_number("monotone: the number of layers", n, 2, kMaxMonotoneLayers);
  for (size_t i = 0; i < widths.size(); ++i)
    check_number("monotone: widths", widths[i], i == 0 ? 0 : 1, int64_t(1) << (i == 0 ? 31 : 20));
  check_number("monotone: the last of the widths", widths.back(), 1, 1);
  return widths;
}

namespace {

MonotoneWork work_of(const MonotoneArgs& a, const View& packed, int device, int64_t* sums) {
  std::vector<int64_t> widths = {a.seen()};
  for (int k = 0; k < a.n; ++k) widths.push_back(a.layers[k].n_out);
  const MonotoneRoom room = monotone_room(a.spec, widths, int(a.type), device);
  if (!room.fits) refuse("monotone: layers", "small enough for the shared memory of a block", "more");
  check_contiguous("monotone: packed", packed, a.type, {a.sets, room.packed});
  *sums = room.sums;
  MonotoneWork w = {};
  w.packed = packed.data;
  return w;
}

}  // namespace

MonotoneWork monotone_fwd_work(const MonotoneArgs& a, const View& packed, const View& terms, int device) {
  int64_t sums;
  MonotoneWork w = work_of(a, packed, device, &sums);
  check_contiguous("monotone: terms", terms, a.type, {a.features, a.rows});
  w.terms = terms.data;
  return w;
}

MonotoneWork monotone_bwd_work(const MonotoneArgs& a, const View& packed, const View& sums, int64_t slices,
                               int device) {
  int64_t numbers;
  MonotoneWork w = work_of(a, packed, device, &numbers);
  check_number("monotone: slices", slices, 1, int64_t(1) << 20);
  w.slices = slices;
  for (int k = 0; k < a.n; ++k)
    if ((a.layers[k].grad_weight || a.layers[k].grad_bias) && !w.sums) {
      check_contiguous("monotone: sums", sums, DType::f64, {a.sets, slices, numbers});
      w.sums = static_cast<double*>(sums.data);
    }
  return w;
}

}  // namespace fk
