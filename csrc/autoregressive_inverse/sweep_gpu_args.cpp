// What a GPU is told of a sweep besides, checked: its steps, and what the sweep back reads and leaves of the layers.
#include <algorithm>

#include "autoregressive_inverse.h"

namespace fk {

namespace {

const SweepStep* checked_steps(const std::vector<std::shared_ptr<const LayerMask>>& masks,
                               const std::vector<std::array<int32_t, 4>>& steps, const View& on_device) {
  const int64_t layers = int64_t(masks.size());
  check_number("sweep: the number of layers", layers, 1, kMaxSweepLayers);
  for (const auto& mask : masks)
    if (!mask) refuse("sweep: masks", "one per layer", "None");
  const int64_t features = masks[0]->n_in;
  std::vector<bool> mapped(size_t(features), false);
  for (const auto& [layer, first, count, inputs] : steps) {
    check_number("sweep: the layer of a step", layer, 0, layers);
    if (layer == layers) {
      check_number("sweep: the feature of a step", first, 0, features - 1);
      check_number("sweep: the column of a step", count, 0, features - 1);
      mapped[size_t(count)] = true;
      continue;
    }
    const LayerMask& mask = *masks[size_t(layer)];
    check_number("sweep: the first unit of a step", first, 0, mask.n_out - 1);
    check_number("sweep: the units of a step", count, 1, std::min(int64_t(kSweepUnits), mask.n_out - first));
    check_number("sweep: the inputs of a step", inputs, 0, mask.n_in);
  }
  for (bool done : mapped)
    if (!done) refuse("sweep: steps", "one at least per feature", "none of some");
  check_contiguous("sweep: steps on the device", on_device, DType::i32, {int64_t(steps.size()), 4});
  if (uintptr_t(on_device.data) % alignof(SweepStep) != 0)
    refuse("sweep: steps on the device", "at a multiple of 16 bytes", "another address");
  return static_cast<const SweepStep*>(on_device.data);
}

}  // namespace

SweepSteps::SweepSteps(std::vector<std::shared_ptr<const LayerMask>> of_layers,
                       const std::vector<std::array<int32_t, 4>>& steps, const View& there)
    : masks(std::move(of_layers)), n(int64_t(steps.size())), on_device(checked_steps(masks, steps, there)) {}

SweepWork sweep_work(const SweepArgs& a, const NetLayers& net, const SweepSteps& steps, const View& packed) {
  if (net.masks() != steps.masks) refuse("sweep: steps", "those of the net's masks", "those of others");
  for (int i = 0; i < net.spec.n; ++i)
    if (net.spec.layers[i].gate) refuse("sweep: gates", "None on a GPU", "a tensor");
  a.map.visit([](const auto& spec) { check_on_gpu(spec); });
  check_contiguous("sweep: packed", packed, a.type, {sweep_packed(net.spec)});
  return {steps.on_device, steps.n, packed.data};
}

std::vector<LayerUnits> sweep_units(const NetLayers& net, const std::vector<std::array<const View*, 2>>& units) {
  const int n = net.spec.n;
  if (int(units.size()) != n)
    refuse("sweep: units", "one pair per layer, " + std::to_string(n), std::to_string(units.size()));
  std::vector<LayerUnits> out;
  for (int i = 0; i < n; ++i) {
    const View &value = *units[size_t(i)][0], &grad = *units[size_t(i)][1];
    const int64_t n_out = net.spec.layers[i].n_out;
    if (i == n - 1) check_given("sweep: the parameters", value);
    if (value.given()) check_contiguous("sweep: values of units", value, net.type, {n_out, net.rows});
    if (grad.given()) check_contiguous("sweep: gradients of units", grad, net.type, {n_out, net.rows});
    out.push_back({value.data, grad.data});
  }
  return out;
}

}  // namespace fk
