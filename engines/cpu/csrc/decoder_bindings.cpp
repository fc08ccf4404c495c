// Linear layers and the decoder's pass as Python objects. They keep alive what they borrow.

#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "decoder_pass.h"

namespace nybble::bindings {

namespace {

/// A layer and the Python objects whose memory it reads.
struct OwningLayer {
  LinearLayer layer;
  std::vector<nb::object> owners;
};

const float* bias_of(OwningLayer& self, const nb::object& bias, std::int64_t num_rows) {
  if (bias.is_none()) return nullptr;
  const Floats1 values = nb::cast<Floats1>(bias, false);
  require(rows(values) == num_rows, "bias must have one entry per row of the weight");
  self.owners.push_back(bias);
  return values.data();
}

void add_fp4(OwningLayer& self, const nb::object& weight, int input_format, float input_scale, bool modelopt,
             const nb::object& bias) {
  require(0 <= input_format && input_format <= 2, "input_format must be 0, 1 or 2");
  const auto* fp4 = nb::cast<const Fp4Weight*>(weight);
  const auto format = static_cast<InputFormat>(input_format);
  require(format == InputFormat::kUnquantized || fp4->group_size() == (format == InputFormat::kMxfp4 ? 32 : 16),
          "input_format does not fit the weight's group size");
  self.layer.add_fp4(fp4, {format, input_scale, modelopt}, bias_of(self, bias, fp4->num_rows()));
  self.owners.push_back(weight);
}

void add_dense(OwningLayer& self, const nb::object& weight, const nb::object& bias) {
  const auto* dense = nb::cast<const DenseWeight*>(weight);
  self.layer.add_dense(dense, bias_of(self, bias, dense->num_rows()));
  self.owners.push_back(weight);
}

struct OwningPass {
  DecoderPass pass;
  std::vector<nb::object> owners;

  const LinearLayer* layer(const nb::object& object) {
    owners.push_back(object);
    return &nb::cast<const OwningLayer*>(object)->layer;
  }
  const float* vector(const nb::object& object) {
    const Floats1 values = nb::cast<Floats1>(object, false);
    require(rows(values) == pass.shape().hidden_size, "a norm's weight must have hidden_size entries");
    owners.push_back(object);
    return values.data();
  }
};

void init_pass(OwningPass* self, const nb::object& embedding, const nb::object& cos, const nb::object& sin,
               const nb::object& final_norm, const nb::object& head, const nb::object& screen, std::int64_t num_heads,
               std::int64_t num_kv_heads, std::int64_t head_dim, std::int64_t sliding_window, float rms_norm_eps) {
  const AnyReadable table = nb::cast<AnyReadable>(embedding, false);
  require(table.ndim() == 2, "embedding must have two dimensions");
  const Floats2 cosines = nb::cast<Floats2>(cos, false), sines = nb::cast<Floats2>(sin, false);
  require(num_heads > 0 && num_kv_heads > 0 && head_dim > 0 && sliding_window >= 0, "sizes must be positive");
  require(2 * columns(cosines) == head_dim, "cos must have head_dim / 2 columns");
  require(rows(sines) == rows(cosines) && columns(sines) == columns(cosines), "sin must have the shape of cos");
  const Floats1 norm = nb::cast<Floats1>(final_norm, false);
  require(rows(norm) == columns(table), "final_norm must have the columns of embedding");
  const LinearLayer* head_layer = &nb::cast<const OwningLayer*>(head)->layer;
  require(head_layer->num_columns() == columns(table), "head must have the columns of embedding");
  HeadScreen* head_screen = screen.is_none() ? nullptr : nb::cast<HeadScreen*>(screen);
  require(head_screen == nullptr || (head_screen->head().num_rows() == head_layer->num_rows() &&
                                     head_screen->head().num_columns() == head_layer->num_columns()),
          "screen must be of the head");
  const DecoderShape shape{columns(table), num_heads, num_kv_heads, head_dim, sliding_window, rms_norm_eps};
  const PassTables tables{table.data(),  element_type(table), rows(table), cosines.data(), sines.data(),
                          rows(cosines), norm.data(),         head_layer,  head_screen};
  new (self) OwningPass{DecoderPass(shape, tables), {embedding, cos, sin, final_norm, head, screen}};
}

void add_layer(OwningPass& self, const nb::object& input_norm, const nb::object& qkv, const nb::object& output,
               const nb::object& post_attention_norm, const nb::object& router, std::int64_t num_experts_per_token,
               const nb::list& experts) {
  PassLayer layer{self.vector(input_norm),
                  self.layer(qkv),
                  self.layer(output),
                  self.vector(post_attention_norm),
                  router.is_none() ? nullptr : self.layer(router),
                  num_experts_per_token,
                  {}};
  for (nb::handle item : experts) {
    const nb::tuple parts = nb::cast<nb::tuple>(item);
    require(parts.size() == 2, "an expert is (gate_up, down)");
    layer.experts.push_back({self.layer(nb::object(parts[0])), self.layer(nb::object(parts[1]))});
  }
  self.pass.add_layer(layer);
}

std::vector<KvCache> caches_of(const DecoderPass& pass, const nb::list& keys, const nb::list& values) {
  require(static_cast<std::int64_t>(keys.size()) == pass.num_layers() && values.size() == keys.size(),
          "keys and values must have one array per layer");
  std::vector<KvCache> caches;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const KvCache cache = kv_cache(AnyReadable(nb::cast<AnyWritable>(keys[i], false)),
                                   AnyReadable(nb::cast<AnyWritable>(values[i], false)));
    require(cache.num_kv_heads == pass.shape().num_kv_heads && cache.head_dim == pass.shape().head_dim,
            "a cache must be [num_blocks, num_kv_heads, block_size, head_dim]");
    caches.push_back(cache);
  }
  return caches;
}

void run(OwningPass& self, const Array<const std::int32_t, 1>& token_ids, const Array<const std::int64_t, 1>& positions,
         const Array<const std::int64_t, 1>& slots, const Array<const std::int32_t, 2>& block_tables,
         const Array<const std::int32_t, 1>& query_starts, const Array<const std::int32_t, 1>& context_lens,
         const Array<const std::int64_t, 1>& logits_rows, const nb::list& keys, const nb::list& values,
         const std::optional<Out2>& logits, const Array<std::int64_t, 1>& likeliest) {
  require(rows(positions) == rows(token_ids) && rows(slots) == rows(token_ids),
          "positions and slots must have one entry per token id");
  require(rows(query_starts) == rows(context_lens) + 1, "query_starts must have one entry more than context_lens");
  require(rows(block_tables) == rows(context_lens), "block_tables must have one row per sequence");
  require(!logits || (rows(*logits) == rows(logits_rows) && columns(*logits) == self.pass.vocab_size()),
          "logits must be [logits rows, vocabulary]");
  require(rows(likeliest) == rows(logits_rows), "likeliest must have one entry per row of logits");
  const std::vector<KvCache> caches = caches_of(self.pass, keys, values);
  const PassBatch batch{token_ids.data(),
                        positions.data(),
                        slots.data(),
                        {rows(token_ids), rows(context_lens), columns(block_tables), block_tables.data(),
                         query_starts.data(), context_lens.data()},
                        logits_rows.data(),
                        rows(logits_rows)};
  nb::gil_scoped_release release;
  self.pass.run(batch, caches, logits ? logits->data() : nullptr, likeliest.data());
}

}  // namespace

void bind_decoder(nb::module_& m) {
  const auto n = [](const char* name) { return nb::arg(name).noconvert(); };
  nb::class_<OwningLayer>(m, "LinearLayer")
      .def("__init__", [](OwningLayer* self) { new (self) OwningLayer; })
      .def("add_fp4", &add_fp4, "weight"_a, "input_format"_a, "input_scale"_a, "modelopt"_a, "bias"_a.none())
      .def("add_dense", &add_dense, "weight"_a, "bias"_a.none())
      .def_prop_ro("num_rows", [](const OwningLayer& self) { return self.layer.num_rows(); })
      .def_prop_ro("num_columns", [](const OwningLayer& self) { return self.layer.num_columns(); });
  nb::class_<OwningPass>(m, "DecoderPass")
      .def("__init__", &init_pass, "embedding"_a, "cos"_a, "sin"_a, "final_norm"_a, "head"_a, "screen"_a.none(),
           "num_heads"_a, "num_kv_heads"_a, "head_dim"_a, "sliding_window"_a, "rms_norm_eps"_a)
      .def("add_layer", &add_layer, "input_norm"_a, "qkv"_a, "output"_a, "post_attention_norm"_a, "router"_a.none(),
           "num_experts_per_token"_a, "experts"_a)
      .def("run", &run, n("token_ids"), n("positions"), n("slots"), n("block_tables"), n("query_starts"),
           n("context_lens"), n("logits_rows"), "keys"_a, "values"_a, n("logits").none(), n("likeliest"));
}

}  // namespace nybble::bindings
