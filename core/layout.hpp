#pragma once

// How the elements of parameter tensors stand in a buffer, whole or cut over ranks: the one description of a partition
// that frameworks' rules write and the executor obeys.

#include <cstdint>
#include <vector>

#include "core/model.hpp"

namespace shardwright {

/// How several tensors are cut into `parts` equal parts, one a rank of a group.
///   Whole     not cut: the tensors one after another (parts = 1)
///   Flat      one after another, padded at the end, then cut evenly (FSDP1's FlatParameter; ZeRO-1 and 2)
///   EachFlat  each tensor flattened, padded and cut by itself; a part holds its piece of each (ZeRO-3)
///   EachRows  each tensor cut along its first dimension into ceil(d / parts) rows, padded (FSDP2, DTensor Shard(0));
///             with one part: whole tensors, each with its rows padded
///   Swizzled  each tensor flattened, padded and cut as EachFlat cuts it for parts x multiple ranks; part p holds the
///             pieces p, p + parts, p + 2 parts, ... one after another: what the ranks in place p of their nodes are to
///             get (ZeRO++, arXiv 2306.10209)
///   Touching  Flat's part with the tensors at its ends whole (gradients that ZeRO-1 and 2 keep for their partition);
///             every part takes the room of the largest
enum class Cut : std::uint8_t { Whole, Flat, EachFlat, EachRows, Touching, Swizzled };
template <> struct EnumNames<Cut> {
    static constexpr std::array<std::pair<Cut, std::string_view>, 6> table{{{Cut::Whole, "whole"},
                                                                            {Cut::Flat, "flat"},
                                                                            {Cut::EachFlat, "each-flat"},
                                                                            {Cut::EachRows, "each-rows"},
                                                                            {Cut::Touching, "touching"},
                                                                            {Cut::Swizzled, "swizzled"}}};
};

/// What a buffer holds: one part, or all parts one after another as an all-gather leaves them.
struct Layout {
    std::vector<std::int32_t> tensors; // indices into listParameters(model), in the order in which they stand
    Cut cut = Cut::Whole;
    std::int64_t parts = 1;
    std::int64_t multiple = 1; // Flat pads the whole, Whole, EachFlat and Swizzled each tensor, to a multiple of
                               // parts x multiple elements; EachRows each tensor's rows likewise
    bool allParts = false;
    std::int64_t align = 1; // Flat: every tensor begins at a multiple of as many elements
    std::int64_t room = 0;  // elements that the buffer takes at least: a bucket, whatever lies in it

    bool operator==(const Layout&) const = default;
};

/// Elements [first, first + count) of a tensor stand at element `at` of the buffer.
struct Extent {
    std::int32_t tensor = 0;
    std::int64_t first = 0;
    std::int64_t count = 0;
    std::int64_t at = 0;

    bool operator==(const Extent&) const = default;
};

/// Elements of a buffer of this layout, padding included.
std::int64_t elementsOf(const Layout& layout, const std::vector<NamedParameter>& parameters);

/// Where the elements of part `part` stand, in the order of the buffer; of all parts where the layout holds them all.
/// Padding stands in no extent. 0 <= part < parts.
std::vector<Extent> extentsOf(const Layout& layout, const std::vector<NamedParameter>& parameters, std::int64_t part);

/// Indices into listParameters(model), by where a parameter stands in the model.
class TensorIndex {
public:
    explicit TensorIndex(const Model& model);

    /// `layer`: position in Model::layers; `parameter`: index into its LayerType::parameters, which must not repeat.
    std::int32_t at(std::size_t layer, std::size_t parameter) const
    {
        return m_first[layer] + m_within[layer][parameter];
    }
    /// All tensors of a layer, in the order of listParameters.
    std::vector<std::int32_t> ofLayer(std::size_t layer) const;

private:
    std::vector<std::int32_t> m_first;
    std::vector<std::vector<std::int32_t>> m_within;
    std::vector<std::int32_t> m_count;
};

} // namespace shardwright
