#pragma once
// Arrays as the Python extension takes them, and what every binding checks. Types declared here keep a caller that
// bypasses kernels.py from reading foreign memory as something else.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

#include "index_checks.h"
#include "kernel_table.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nybble::bindings {

template <typename Element, int Dimensions>
using Array = nb::ndarray<Element, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
using Floats1 = Array<const float, 1>;
using Floats2 = Array<const float, 2>;
using Floats3 = Array<const float, 3>;
using Out1 = Array<float, 1>;
using Out2 = Array<float, 2>;
using Out3 = Array<float, 3>;
using AnyReadable = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using AnyWritable = nb::ndarray<nb::c_contig, nb::device::cpu>;
using NoGil = nb::call_guard<nb::gil_scoped_release>;

inline std::int64_t rows(const auto& array) { return static_cast<std::int64_t>(array.shape(0)); }
inline std::int64_t columns(const auto& array) { return static_cast<std::int64_t>(array.shape(1)); }
inline std::int64_t depth(const auto& array) { return static_cast<std::int64_t>(array.shape(2)); }

using nybble::require;

inline nybble::ElementType element_type(const AnyReadable& array) {
  if (array.dtype() == nb::dtype<float>()) return nybble::ElementType::kFloat32;
  if (array.dtype() == nb::dtype<std::uint16_t>()) return nybble::ElementType::kBfloat16;
  if (array.dtype().code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float) && array.dtype().bits == 16) {
    return nybble::ElementType::kFloat16;
  }
  throw std::invalid_argument("expected float32, float16 or uint16 (bfloat16 bits) elements");
}

inline nybble::ElementType cache_element_type(const AnyReadable& array) {
  if (array.dtype() == nb::dtype<std::uint8_t>()) return nybble::ElementType::kFloat8E4m3;
  const nybble::ElementType type = element_type(array);
  require(type != nybble::ElementType::kFloat16, "a KV cache is float32, uint16 (bfloat16 bits) or uint8 (E4M3)");
  return type;
}

inline nybble::KvCache kv_cache(const AnyReadable& k, const AnyReadable& v) {
  require(k.ndim() == 4 && v.ndim() == 4, "k_cache and v_cache must have four dimensions");
  for (std::size_t i = 0; i < 4; ++i) require(k.shape(i) == v.shape(i), "k_cache and v_cache must have one shape");
  const nybble::ElementType type = cache_element_type(k);
  require(type == cache_element_type(v), "k_cache and v_cache must have one type of element");
  // E4M3: a byte more per row, for its scale.
  const std::int64_t extra = type == nybble::ElementType::kFloat8E4m3 ? 1 : 0;
  for (std::size_t i = 1; i < 4; ++i) require(k.shape(i) > 0, "k_cache has an empty dimension");
  require(static_cast<std::int64_t>(k.shape(3)) > extra, "k_cache has an empty dimension");
  return {const_cast<void*>(k.data()),
          const_cast<void*>(v.data()),
          rows(k),
          columns(k),
          depth(k),
          static_cast<std::int64_t>(k.shape(3)) - extra,
          type};
}

/// Adds LinearLayer and DecoderPass to the module.
void bind_decoder(nb::module_& m);

}  // namespace nybble::bindings
