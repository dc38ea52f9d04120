// The affine map in SIMD lanes.
#pragma once
#include "../common/pair.h"
#include "affine_math.h"
