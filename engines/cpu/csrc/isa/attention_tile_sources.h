#pragma once
// Where the tiles of attention find a tile's keys and values: in groups of slots, or in rows.

#include "attention_item.h"
#include "attention_tile_operands.h"

namespace nybble::NYBBLE_ISA {

/// Keys of a tile as the products read them.
using KeyGroups = const std::uint16_t* [kTileGroups];

/// Keys in groups: of bfloat16 they are tiles as they lie.
template <ElementType Type>
struct GroupedSource {
  using Tile = TileGroups;
  static constexpr int64_t kElementBytes = element_bytes(Type);
  static constexpr int64_t kNearBytes = 1024;

  static Tile find(const Queries& queries, int64_t start) { return find_groups(queries, start); }
  static Tile next_head(const Tile& tile, const KvCache& cache) { return tile.next_head(cache); }
  static auto scales(const KvCache& cache, const Tile& tile) { return scales_of<Type>(cache, tile); }

  /// Groups that hold `positions`; `buffer`: [kTileGroups][head_dim / 2][kKeyGroup][2].
  static void find_keys(const Tile& tile, Range positions, int64_t head_dim, std::uint16_t* buffer, KeyGroups& keys) {
    for (int64_t g = positions.begin / kKeyGroup; g * kKeyGroup < positions.end; ++g) {
      if constexpr (Type == ElementType::kBfloat16) {
        keys[g] = reinterpret_cast<const std::uint16_t*>(tile.keys[g]);
        continue;
      }
      std::uint16_t* group = buffer + g * kKeyGroup * head_dim;
      for (int64_t i = 0; i < kKeyGroup * head_dim; i += 32) {
        _mm512_storeu_si512(group + i, load_bfloat16_pairs<Type>(tile.keys[g] + i * kElementBytes));
      }
      keys[g] = group;
    }
  }
  static __m512i load_values(const Tile& tile, int64_t j, int64_t d, int64_t head_dim) {
    return load_bfloat16_pairs<Type>(tile.values[j / kKeyGroup] + kElementBytes * (j % kKeyGroup * head_dim + d));
  }

  static Tile completed(const Tile& tile, const Tile& other) { return tile.completed_by(other); }
  static void fetch_scales(const KvCache& cache, const Tile& tile) {
    nybble::NYBBLE_ISA::fetch_scales<Type>(cache, tile);
  }
  /// To be called when 32 dimensions of a group of keys, or of one value, are read: asks memory for those of `ahead`,
  /// and L2 for what comes next.
  static void fetch_keys(const Tile& tile, const Tile& ahead, int64_t group, int64_t d) {
    const int64_t begin = d * kKeyGroup * kElementBytes;
    for (int64_t byte = begin; byte < begin + 32 * kKeyGroup * kElementBytes; byte += 64) {
      fetch(tile.keys[group], ahead.keys[group], byte);
    }
  }
  static void fetch_values(const Tile& tile, const Tile& ahead, int64_t j, int64_t d, int64_t head_dim) {
    fetch(tile.values[j / kKeyGroup], ahead.values[j / kKeyGroup], kElementBytes * (j % kKeyGroup * head_dim + d));
  }

 private:
  static void fetch(const std::uint8_t* group, const std::uint8_t* ahead, int64_t byte) {
    __builtin_prefetch(ahead + byte, 0, 2);
    __builtin_prefetch(group + byte + kNearBytes, 0, 3);
  }
};

/// Keys in rows, of blocks that do not hold whole groups.
template <ElementType Type>
struct RowSource {
  struct Tile {
    TileRows keys, values;
    TileScaleBytes scales;
  };

  static Tile find(const Queries& queries, int64_t start) {
    const KvCache& cache = queries.args.cache;
    const std::int32_t* table = queries.unit.block_table;
    const Range positions = positions_of(queries, start);
    Tile tile;
    const auto find_in = [&](const void* base, TileRows& rows) {
      find_rows(cache, base, table, queries.kv_head, start, positions.begin, positions.end, nullptr, rows);
      for (const std::uint8_t*& row : rows.rows) {
        if (row == nullptr) row = rows.rows[positions.begin];  // to be masked
      }
    };
    find_in(cache.k, tile.keys);
    find_in(cache.v, tile.values);
    if constexpr (Type == ElementType::kFloat8E4m3) {
      find_scales(cache, table, queries.kv_head, start, positions.begin, positions.end, tile.scales);
    }
    return tile;
  }
  static Tile next_head(const Tile& tile, const KvCache&) { return tile; }  // an item has one: few_queries()
  static auto scales(const KvCache&, const Tile& tile) { return scales_of<Type>(tile.scales); }

  static void find_keys(const Tile& tile, Range positions, int64_t head_dim, std::uint16_t* buffer, KeyGroups& keys) {
    for (int64_t g = positions.begin / kKeyGroup; g * kKeyGroup < positions.end; ++g) {
      std::uint16_t* group = buffer + g * kKeyGroup * head_dim;
      group_keys<Type>(tile.keys.rows + g * kKeyGroup, head_dim, group);
      keys[g] = group;
    }
  }
  /// In the order n, 16 + n: sums of such a cache hold their dimensions in sequence.
  static __m512i load_values(const Tile& tile, int64_t j, int64_t d, int64_t) {
    const __m512i halves = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                            21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const std::uint8_t* row = tile.values.rows[j] + d * element_bytes(Type);
    return _mm512_permutexvar_epi16(halves, load_bfloat16_pairs<Type>(row));
  }

  static Tile completed(const Tile& tile, const Tile&) { return tile; }
  static void fetch_scales(const KvCache&, const Tile&) {}
  static void fetch_keys(const Tile&, const Tile&, int64_t, int64_t) {}
  static void fetch_values(const Tile&, const Tile&, int64_t, int64_t, int64_t) {}
};

}  // namespace nybble::NYBBLE_ISA
