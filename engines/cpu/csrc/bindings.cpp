// Python extension engines.cpu._kernels. Shapes and types are checked in kernels.py; the types declared here keep a
// caller that bypasses it from reading foreign memory as something else. Every kernel releases the GIL.

#include "bindings.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "amx_support.h"
#include "head_screen.h"
#include "isa.h"
#include "machine_limits.h"
#include "ops.h"
#include "thread_pool.h"
#include "token_draw.h"
#include "weights.h"

using namespace nybble::bindings;

namespace {

void init_fp4_weight(nybble::Fp4Weight* self, const nb::list& shards, int group_size, bool round_to_bfloat16,
                     float activation_scale) {
  using Bytes = Array<const std::uint8_t, 2>;
  std::vector<Bytes> owned;
  std::vector<Floats1> tables;
  std::vector<nybble::Fp4Shard> views;
  std::int64_t num_columns = -1;
  for (nb::handle item : shards) {
    const nb::tuple parts = nb::cast<nb::tuple>(item);
    require(parts.size() == 3, "a shard is (packed, scales, scale_table)");
    const Bytes packed = nb::cast<Bytes>(parts[0], false);
    const Bytes scales = nb::cast<Bytes>(parts[1], false);
    const Floats1 table = nb::cast<Floats1>(parts[2], false);
    if (num_columns < 0) num_columns = 2 * columns(packed);
    require(2 * columns(packed) == num_columns, "shards must have the same number of columns");
    require(rows(scales) == rows(packed), "scales must have as many rows as packed");
    require(group_size > 0 && columns(scales) * group_size == num_columns,
            "scales must have packed's columns times two over group_size columns");
    require(table.shape(0) == 256, "scale_table must have 256 entries");
    owned.push_back(packed);
    owned.push_back(scales);
    tables.push_back(table);
    views.push_back({packed.data(), scales.data(), table.data(), rows(packed)});
  }
  nb::gil_scoped_release release;
  new (self) nybble::Fp4Weight(views, num_columns, group_size, round_to_bfloat16, activation_scale);
}

nb::ndarray<nb::numpy, float, nb::ndim<2>> decode(const nybble::Fp4Weight& weight) {
  const auto num_rows = static_cast<std::size_t>(weight.num_rows());
  const auto num_columns = static_cast<std::size_t>(weight.num_columns());
  auto* values = new float[num_rows * num_columns];
  nb::capsule owner(values, [](void* memory) noexcept { delete[] static_cast<float*>(memory); });
  {
    nb::gil_scoped_release release;
    weight.decode(values);
  }
  return {values, {num_rows, num_columns}, owner};
}

std::int64_t num_rows_sharing_exponents(const Array<const std::uint8_t, 2>& scales) {
  return nybble::num_rows_sharing_exponents(scales.data(), rows(scales), columns(scales));
}

nb::tuple logits_peak(const Floats1& logits) {
  require(logits.shape(0) > 0, "there must be a logit");
  const auto peak = nybble::kernels().logits_peak(logits.data(), static_cast<std::int64_t>(logits.shape(0)));
  return nb::make_tuple(peak.token_id, peak.logit, peak.all_finite);
}

void likeliest_tokens(const Floats2& logits, const Array<std::int64_t, 1>& out) {
  require(columns(logits) > 0, "there must be a logit");
  require(rows(out) == rows(logits), "out must have an entry per row");
  nybble::likeliest_tokens(logits.data(), rows(logits), columns(logits), out.data());
}

void token_weights(const Floats1& logits, float maximum, float inverse_temperature, float scale, const Out1& out) {
  require(out.shape(0) == logits.shape(0), "out must have an entry per logit");
  nybble::kernels().token_weights(logits.data(), static_cast<std::int64_t>(logits.shape(0)), maximum,
                                  inverse_temperature, scale, out.data());
}

/// One draw a row: its arguments in the order of DrawArgs.
nb::list draw_tokens(const nb::list& rows, const Array<const double, 2>& arguments) {
  constexpr std::int64_t kNumArguments = 6;
  require(static_cast<std::int64_t>(rows.size()) == nybble::bindings::rows(arguments) &&
              columns(arguments) == kNumArguments,
          "arguments must have six columns and a row per draw");
  std::vector<nybble::DrawTask> tasks;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Floats1 logits = nb::cast<Floats1>(rows[i], false);
    require(logits.shape(0) > 0, "there must be a logit");
    const double* of = arguments.data() + static_cast<std::int64_t>(i) * kNumArguments;
    tasks.push_back({logits.data(),
                     static_cast<std::int64_t>(logits.shape(0)),
                     {static_cast<float>(of[0]), static_cast<float>(of[1]), static_cast<float>(of[2]),
                      static_cast<std::int64_t>(of[3]), of[4], of[5]}});
  }
  std::vector<std::int64_t> drawn(tasks.size());
  {
    nb::gil_scoped_release release;
    nybble::draw_tokens(tasks, drawn.data());
  }
  nb::list token_ids;
  for (const std::int64_t token_id : drawn) token_ids.append(token_id);
  return token_ids;
}

void init_dense_weight(nybble::DenseWeight* self, const AnyReadable& values) {
  require(values.ndim() == 2, "a dense weight has two dimensions");
  const nybble::ElementType type = element_type(values);
  nb::gil_scoped_release release;
  new (self) nybble::DenseWeight(values.data(), rows(values), columns(values), type);
}

void screened_tokens(nybble::HeadScreen& self, const Floats2& x, const Array<std::int64_t, 1>& out) {
  require(columns(x) == self.head().num_columns(), "x must have the head's columns");
  require(rows(out) == rows(x), "out must have an entry per row");
  nb::gil_scoped_release release;
  self.likeliest(x.data(), rows(x), out.data());
}

void fp4_linear_w4a4(const Array<const std::int8_t, 2>& codes, const Floats2& scales, const nybble::Fp4Weight& weight,
                     const Out2& out) {
  require(columns(codes) == weight.num_columns(), "codes must have the weight's columns");
  require(rows(scales) == rows(codes) && columns(scales) * weight.group_size() == columns(codes),
          "scales must be [rows of codes, columns of codes / group_size]");
  require(rows(out) == rows(codes) && columns(out) == weight.num_rows(), "out must be [rows of codes, weight rows]");
  nybble::fp4_linear_w4a4(codes.data(), scales.data(), weight, rows(codes), out.data());
}

void fp4_linear_w4a16(const Floats2& x, const nybble::Fp4Weight& weight, const Out2& out) {
  require(columns(x) == weight.num_columns(), "x must have the weight's columns");
  require(rows(out) == rows(x) && columns(out) == weight.num_rows(), "out must be [rows of x, weight rows]");
  nybble::fp4_linear_w4a16(x.data(), weight, rows(x), out.data());
}

void fp4_linear_f32(const Floats2& x, const nybble::Fp4Weight& weight, const Out2& out) {
  require(columns(x) == weight.num_columns(), "x must have the weight's columns");
  require(rows(out) == rows(x) && columns(out) == weight.num_rows(), "out must be [rows of x, weight rows]");
  nybble::fp4_linear_f32(x.data(), weight, rows(x), out.data());
}

void dense_linear(const Floats2& x, const nybble::DenseWeight& weight, const Out2& out) {
  require(columns(x) == weight.num_columns(), "x must have the weight's columns");
  require(rows(out) == rows(x) && columns(out) == weight.num_rows(), "out must be [rows of x, weight rows]");
  nybble::dense_linear(x.data(), weight, rows(x), out.data());
}

nybble::QuantizeArgs quantize_args(const Floats2& x, const Array<std::int8_t, 2>& codes, const Out2& scales,
                                   std::int64_t group_size) {
  require(columns(x) % group_size == 0, "x must have a multiple of the group size columns");
  require(rows(codes) == rows(x) && columns(codes) == columns(x), "codes must have the shape of x");
  require(rows(scales) == rows(x) && columns(scales) * group_size == columns(x),
          "scales must be [rows of x, columns of x / group size]");
  return {x.data(), codes.data(), scales.data(), columns(x), 0.0F, false};
}

void quantize_mxfp4(const Floats2& x, const Array<std::int8_t, 2>& codes, const Out2& scales) {
  nybble::quantize_mxfp4(quantize_args(x, codes, scales, 32), rows(x));
}

void quantize_nvfp4(const Floats2& x, float input_scale, bool modelopt, const Array<std::int8_t, 2>& codes,
                    const Out2& scales) {
  nybble::QuantizeArgs args = quantize_args(x, codes, scales, 16);
  args.input_scale = input_scale;
  args.modelopt = modelopt;
  nybble::quantize_nvfp4(args, rows(x));
}

void rms_norm(const Floats2& x, const Floats1& weight, float epsilon, const Out2& out) {
  require(rows(weight) == columns(x), "weight must have the columns of x");
  require(rows(out) == rows(x) && columns(out) == columns(x), "out must have the shape of x");
  nybble::rms_norm({x.data(), nullptr, weight.data(), out.data(), columns(x), epsilon}, rows(x));
}

void add_rms_norm(const Floats2& x, const Out2& residual, const Floats1& weight, float epsilon, const Out2& out) {
  require(rows(weight) == columns(x), "weight must have the columns of x");
  require(rows(residual) == rows(x) && columns(residual) == columns(x), "residual must have the shape of x");
  require(rows(out) == rows(x) && columns(out) == columns(x), "out must have the shape of x");
  nybble::rms_norm({x.data(), residual.data(), weight.data(), out.data(), columns(x), epsilon}, rows(x));
}

void rope(const Out3& q, const Array<const std::int64_t, 1>& positions, const Floats2& cos, const Floats2& sin) {
  require(rows(positions) == rows(q), "positions must have one entry per row of q");
  require(2 * columns(cos) == depth(q), "cos must have head_dim / 2 columns");
  require(rows(sin) == rows(cos) && columns(sin) == columns(cos), "sin must have the shape of cos");
  nybble::rope({q.data(), positions.data(), cos.data(), sin.data(), columns(q), depth(q)}, rows(q), rows(cos));
}

void silu_mul(const Floats2& gate_up, const Out2& out) {
  require(rows(out) == rows(gate_up) && 2 * columns(out) == columns(gate_up),
          "out must be [rows of gate_up, half the columns of gate_up]");
  nybble::silu_mul({gate_up.data(), out.data(), columns(out)}, rows(out));
}

void embed(const Array<const std::int32_t, 1>& token_ids, const AnyReadable& table, const Out2& out) {
  require(table.ndim() == 2, "table must have two dimensions");
  require(rows(out) == rows(token_ids) && columns(out) == columns(table), "out must be [token ids, columns of table]");
  nybble::embed(token_ids.data(), rows(out), table.data(), element_type(table), rows(table), columns(table),
                out.data());
}

void kv_write(const Floats3& k, const Floats3& v, const Array<const std::int64_t, 1>& slots, const AnyWritable& k_cache,
              const AnyWritable& v_cache) {
  const nybble::KvCache cache = kv_cache(AnyReadable(k_cache), AnyReadable(v_cache));
  require(columns(k) == cache.num_kv_heads && depth(k) == cache.head_dim, "k must be [rows, num_kv_heads, head_dim]");
  require(rows(v) == rows(k) && columns(v) == columns(k) && depth(v) == depth(k), "v must have the shape of k");
  require(rows(slots) == rows(k), "slots must have one entry per row of k");
  nybble::kv_write({cache, k.data(), v.data(), slots.data()}, rows(k));
}

void paged_attention(const Floats3& q, const AnyReadable& k_cache, const AnyReadable& v_cache,
                     const Array<const std::int32_t, 2>& block_tables, const Array<const std::int32_t, 1>& query_starts,
                     const Array<const std::int32_t, 1>& context_lens, float scale, std::int64_t sliding_window,
                     const Out3& out) {
  const nybble::KvCache cache = kv_cache(k_cache, v_cache);
  require(depth(q) == cache.head_dim, "q must have the cache's head_dim");
  require(rows(out) == rows(q) && columns(out) == columns(q) && depth(out) == depth(q), "out must have the shape of q");
  require(rows(query_starts) == rows(context_lens) + 1, "query_starts must have one entry more than context_lens");
  require(rows(block_tables) == rows(context_lens), "block_tables must have one row per sequence");
  require(sliding_window >= 0, "sliding_window must not be negative");
  nybble::paged_attention({cache, q.data(), out.data(), columns(q), scale, sliding_window},
                          {rows(q), rows(context_lens), columns(block_tables), block_tables.data(), query_starts.data(),
                           context_lens.data()});
}

void route_top_k(const Floats2& logits, const Array<std::int32_t, 2>& ids, const Out2& weights) {
  require(rows(ids) == rows(logits), "ids must have the rows of logits");
  require(rows(weights) == rows(ids) && columns(weights) == columns(ids), "weights must have the shape of ids");
  nybble::route_top_k(logits.data(), rows(logits), columns(logits), columns(ids), ids.data(), weights.data());
}

void gather_rows(const Floats2& x, const Array<const std::int64_t, 1>& indices, const Out2& out) {
  require(rows(out) == rows(indices) && columns(out) == columns(x), "out must be [rows, columns of x]");
  nybble::gather_rows(x.data(), rows(x), indices.data(), rows(indices), columns(x), out.data());
}

void scatter_add_rows(const Floats2& y, const Array<const std::int64_t, 1>& indices, const Floats1& weights,
                      const Out2& out) {
  require(rows(indices) == rows(y) && rows(weights) == rows(y), "rows and weights must have one entry per row of y");
  require(columns(out) == columns(y), "out must have the columns of y");
  nybble::scatter_add_rows(y.data(), indices.data(), weights.data(), rows(y), columns(y), out.data(), rows(out));
}

}  // namespace

NB_MODULE(_kernels, m) {
  m.doc() = "Kernels of the CPU engine; use engines.cpu.kernels, which checks its arguments.";
  m.def("isa_name", [] { return std::string(nybble::kernels().name); });
  m.def("available_isas", &nybble::available_isas);
  m.def("set_isa", &nybble::set_isa, "name"_a);
  m.def("amx_status", [] { return nybble::amx_status(); });
  m.def("num_threads", &nybble::num_threads);
  m.def("set_num_threads", &nybble::set_num_threads, "count"_a);
  m.def("pin_calling_thread", &nybble::pin_calling_thread);
  m.def("num_physical_cores", &nybble::num_physical_cores);
  m.def(
      "measure_operations",
      [](int kind, int num_threads, double seconds, int repetitions) {
        return nybble::measure_operations(static_cast<nybble::LimitKind>(kind), num_threads, seconds, repetitions);
      },
      NoGil(), "kind"_a, "num_threads"_a, "seconds"_a, "repetitions"_a);
  m.def("measure_read_bandwidth", &nybble::measure_read_bandwidth, NoGil(), "num_bytes"_a, "num_threads"_a,
        "repetitions"_a);

  nb::class_<nybble::Fp4Weight>(m, "Fp4Weight")
      .def("__init__", &init_fp4_weight, "shards"_a, "group_size"_a, "round_to_bfloat16"_a, "activation_scale"_a)
      .def("decode", &decode)
      .def_prop_ro("num_rows", &nybble::Fp4Weight::num_rows)
      .def_prop_ro("num_columns", &nybble::Fp4Weight::num_columns)
      .def_prop_ro("group_size", &nybble::Fp4Weight::group_size)
      .def_prop_ro("round_to_bfloat16", &nybble::Fp4Weight::round_to_bfloat16)
      .def_prop_ro("num_bytes", &nybble::Fp4Weight::num_bytes)
      .def_prop_ro("shard_rows", &nybble::Fp4Weight::shard_rows);
  m.def("num_rows_sharing_exponents", &num_rows_sharing_exponents, nb::arg("scales").noconvert());
  nb::class_<nybble::DenseWeight>(m, "DenseWeight")
      .def("__init__", &init_dense_weight, nb::arg("values").noconvert())
      .def_prop_ro("num_rows", &nybble::DenseWeight::num_rows)
      .def_prop_ro("num_columns", &nybble::DenseWeight::num_columns)
      .def_prop_ro("num_bytes", &nybble::DenseWeight::num_bytes);
  nb::class_<nybble::HeadScreen>(m, "HeadScreen")
      .def(nb::init<const nybble::DenseWeight&>(), "head"_a, nb::keep_alive<1, 2>(), NoGil())
      .def_static("fits", &nybble::HeadScreen::fits, "num_columns"_a)
      .def_static("bytes_of", &nybble::HeadScreen::bytes_of, "num_rows"_a, "num_columns"_a)
      .def("likeliest", &screened_tokens, nb::arg("x").noconvert(), nb::arg("out").noconvert())
      .def_prop_ro("num_bytes", &nybble::HeadScreen::num_bytes);

  bind_decoder(m);

  // Tens of microseconds each: not worth another thread's turn with the GIL.
  m.def("logits_peak", &logits_peak, nb::arg("logits").noconvert());
  m.def("token_weights", &token_weights, nb::arg("logits").noconvert(), "maximum"_a, "inverse_temperature"_a, "scale"_a,
        nb::arg("out").noconvert());
  m.def("likeliest_tokens", &likeliest_tokens, NoGil(), nb::arg("logits").noconvert(), nb::arg("out").noconvert());
  m.def("draw_tokens", &draw_tokens, "rows"_a, nb::arg("arguments").noconvert());
  m.def("philox_uniform", &nybble::philox_uniform, "seed"_a, "position"_a);

  const auto n = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("fp4_linear_w4a4", &fp4_linear_w4a4, NoGil(), n("codes"), n("scales"), n("weight"), n("out"));
  m.def("fp4_linear_w4a16", &fp4_linear_w4a16, NoGil(), n("x"), n("weight"), n("out"));
  m.def("fp4_linear_f32", &fp4_linear_f32, NoGil(), n("x"), n("weight"), n("out"));
  m.def("dense_linear", &dense_linear, NoGil(), n("x"), n("weight"), n("out"));
  m.def("quantize_mxfp4", &quantize_mxfp4, NoGil(), n("x"), n("codes"), n("scales"));
  m.def("quantize_nvfp4", &quantize_nvfp4, NoGil(), n("x"), "input_scale"_a, "modelopt"_a, n("codes"), n("scales"));
  m.def("rms_norm", &rms_norm, NoGil(), n("x"), n("weight"), "epsilon"_a, n("out"));
  m.def("add_rms_norm", &add_rms_norm, NoGil(), n("x"), n("residual"), n("weight"), "epsilon"_a, n("out"));
  m.def("rope", &rope, NoGil(), n("q"), n("positions"), n("cos"), n("sin"));
  m.def("silu_mul", &silu_mul, NoGil(), n("gate_up"), n("out"));
  m.def("embed", &embed, NoGil(), n("token_ids"), n("table"), n("out"));
  m.def("kv_write", &kv_write, NoGil(), n("k"), n("v"), n("slots"), n("k_cache"), n("v_cache"));
  m.def("paged_attention", &paged_attention, NoGil(), n("q"), n("k_cache"), n("v_cache"), n("block_tables"),
        n("query_starts"), n("context_lens"), "scale"_a, "sliding_window"_a, n("out"));
  m.def("route_top_k", &route_top_k, NoGil(), n("logits"), n("ids"), n("weights"));
  m.def("gather_rows", &gather_rows, NoGil(), n("x"), n("rows"), n("out"));
  m.def("scatter_add_rows", &scatter_add_rows, NoGil(), n("y"), n("rows"), n("weights"), n("out"));
}
