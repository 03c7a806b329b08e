#pragma once

// Which elements of which tensors a buffer of this rank holds, and what two buffers have in common.

#include <cstdint>
#include <vector>

#include "core/actions.hpp"

namespace shardwright {

/// Elements [first, first + count) of a tensor's quantity stand at element `at` of the buffer. `moment`: 0 exp_avg,
/// 1 exp_avg_sq; 0 for all other quantities.
struct Piece {
    std::int32_t tensor = 0;
    int moment = 0;
    std::int64_t first = 0;
    std::int64_t count = 0;
    std::int64_t at = 0;
};

/// A buffer's content, worked out for one rank. Pieces are sorted by tensor, moment and first element; those that
/// continue each other both in the tensor and in the buffer are one.
struct Held {
    Content content;
    std::int64_t elements = 0; // padding and room included, all moments; of one version
    std::int64_t filled = 0;   // without the room that nothing lies in
    std::vector<Piece> pieces;

    /// Where all elements of `tensor` stand one after another; nullptr where they do not.
    const Piece* whole(std::int32_t tensor, std::int64_t numel) const;
};

/// `part`: this rank's place in the content's group. `moments`: how many there are of each element.
Held heldBy(const Content& content, const std::vector<NamedParameter>& parameters, std::int64_t part, int moments);

/// `count` elements that stand at `from` in one buffer and at `to` in another.
struct Run {
    std::int64_t from = 0;
    std::int64_t to = 0;
    std::int64_t count = 0;
};

/// What both hold, whatever their quantities; `moment` >= 0: of `to`, only that moment, against moment 0 of `from`.
/// Sorted by where it stands in `to`. Elements that `from` holds twice are taken from its first piece.
std::vector<Run> common(const Held& from, const Held& to, int moment = -1);

std::int64_t elementsOf(const std::vector<Run>& runs);

/// Where both hold their parts of tensors cut one by one over the same group, and one has no tensor that the other has
/// not: that one. Otherwise nullptr.
const Held* smallerPartition(const Held& left, const Held& right);

} // namespace shardwright
