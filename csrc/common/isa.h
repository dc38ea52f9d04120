// Which instruction set the CPU kernels run with. Decided once, from what the processor has;
// FLOWKERNELS_ISA or use_isa() choose a smaller one, for tests and measurements.
#pragma once
#include <string>
#include <vector>

namespace fk {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2 };

Isa isa();
const char* isa_name(Isa);
std::vector<std::string> isas();        // those this processor can run, smallest first
void use_isa(const std::string& name);  // throws std::invalid_argument

}  // namespace fk
