#pragma once

// A model of a family at another size: deeper or shallower, wider or narrower.

#include <optional>
#include <vector>

#include "core/model.hpp"

namespace shardwright::search {

/// The model with so many blocks: the first ones where there are fewer, otherwise the last block again and again.
Model withBlocks(const Model& model, std::int64_t blocks);

/// The model with so many attention heads of the same size. Hidden size and key-value heads (but a single one) keep
/// their ratio to the heads; widths of MLPs and experts too, to the nearest multiple of the largest power of two up to
/// 256 that divides them now. Vocabulary, positions, number of experts and ranks of adapters stay. Nothing where a
/// ratio does not come out even, or where the model has dimensions that the heads do not tell (latent attention).
std::optional<Model> withHeads(const Model& model, std::int64_t heads);

/// Numbers of heads that withHeads takes, from half to eight times the model's.
std::vector<std::int64_t> usualHeads(const Model& model);

} // namespace shardwright::search
