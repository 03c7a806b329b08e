#include "executor/engine/pieces.hpp"

#include <algorithm>
#include <tuple>

namespace shardwright {

namespace {

auto order(const Piece& piece)
{
    return std::tuple(piece.tensor, piece.moment, piece.first, piece.at);
}

bool holdsTensorsOf(const Layout& larger, const Layout& smaller)
{
    return std::all_of(smaller.tensors.begin(), smaller.tensors.end(), [&](std::int32_t tensor) {
        return std::find(larger.tensors.begin(), larger.tensors.end(), tensor) != larger.tensors.end();
    });
}

} // namespace

const Piece* Held::whole(std::int32_t tensor, std::int64_t numel) const
{
    const auto found =
        std::find_if(pieces.begin(), pieces.end(), [&](const Piece& piece) { return piece.tensor == tensor; });
    return found != pieces.end() && found->first == 0 && found->count == numel ? &*found : nullptr;
}

Held heldBy(const Content& content, const std::vector<NamedParameter>& parameters, std::int64_t part, int moments)
{
    Held held;
    held.content = content;
    const std::int64_t elements = elementsOf(content.layout, parameters);
    const int copies = content.quantity == Quantity::Moments ? moments : 1;
    held.elements = checkedMultiply(elements, copies);
    Layout lying = content.layout;
    lying.room = 0;
    held.filled = checkedMultiply(elementsOf(lying, parameters), copies);
    for (const Extent& extent : extentsOf(content.layout, parameters, part))
        for (int moment = 0; moment < copies; ++moment)
            held.pieces.push_back({extent.tensor, moment, extent.first, extent.count, extent.at + moment * elements});
    std::sort(held.pieces.begin(), held.pieces.end(),
              [](const Piece& left, const Piece& right) { return order(left) < order(right); });
    std::vector<Piece> merged;
    for (const Piece& piece : held.pieces) {
        if (!merged.empty()) {
            Piece& last = merged.back();
            if (last.tensor == piece.tensor && last.moment == piece.moment && last.first + last.count == piece.first &&
                last.at + last.count == piece.at) {
                last.count += piece.count;
                continue;
            }
        }
        merged.push_back(piece);
    }
    held.pieces = std::move(merged);
    return held;
}

std::vector<Run> common(const Held& from, const Held& to, int moment)
{
    std::vector<Run> runs;
    for (const Piece& target : to.pieces) {
        if (moment >= 0 && target.moment != moment)
            continue;
        const int wanted = moment >= 0 ? 0 : target.moment;
        auto source = std::lower_bound(from.pieces.begin(), from.pieces.end(), std::tuple(target.tensor, wanted),
                                       [](const Piece& piece, const std::tuple<std::int32_t, int>& key) {
                                           return std::tuple(piece.tensor, piece.moment) < key;
                                       });
        std::int64_t next = target.first; // elements before it have been found
        const std::int64_t end = target.first + target.count;
        for (; source != from.pieces.end() && source->tensor == target.tensor && source->moment == wanted; ++source) {
            const std::int64_t begin = std::max(next, source->first);
            const std::int64_t stop = std::min(end, source->first + source->count);
            if (begin >= stop)
                continue;
            runs.push_back({source->at + begin - source->first, target.at + begin - target.first, stop - begin});
            next = stop;
        }
    }
    std::sort(runs.begin(), runs.end(), [](const Run& left, const Run& right) { return left.to < right.to; });
    return runs;
}

std::int64_t elementsOf(const std::vector<Run>& runs)
{
    std::int64_t elements = 0;
    for (const Run& run : runs)
        elements += run.count;
    return elements;
}

const Held* smallerPartition(const Held& left, const Held& right)
{
    const Layout& mine = left.content.layout;
    const Layout& theirs = right.content.layout;
    if (mine.cut != Cut::EachFlat || theirs.cut != Cut::EachFlat || mine.parts != theirs.parts ||
        mine.multiple != theirs.multiple || mine.allParts || theirs.allParts ||
        left.content.group != right.content.group)
        return nullptr;
    return holdsTensorsOf(mine, theirs) ? &right : holdsTensorsOf(theirs, mine) ? &left : nullptr;
}

} // namespace shardwright
