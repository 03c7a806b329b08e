#include "executor/comm/ring_collectives.hpp"

#include <algorithm>
#include <cstring>
#include <functional>

namespace shardwright {

namespace {

/// Bytes that travel down a chain at a time, so that all its links are busy at once.
constexpr std::int64_t kChainBytes = 256 << 10;

std::int64_t elementBytes(DType dtype)
{
    return bitsOf(dtype) / 8;
}

using PieceAt = std::function<PieceRange(int)>; // bytes of piece `index`, 0 <= index < size

/// After step k a rank has piece (rank - k - 1); after all of them every piece but its own has come.
void gatherPieces(Links& links, std::byte* all, const PieceAt& pieceAt)
{
    const int n = links.size();
    const int rank = links.rank();
    for (int step = 0; step + 1 < n; ++step) {
        const PieceRange out = pieceAt((rank - step + n) % n);
        const PieceRange in = pieceAt((rank - step - 1 + n) % n);
        links.exchange({(rank + 1) % n, all + out.first, out.count},
                       {(rank - 1 + n) % n, all + in.first, in.count, std::nullopt});
    }
}

/// Piece p starts at rank p + 1 and ends, summed, at rank p.
void reducePieces(Links& links, std::byte* all, const PieceAt& pieceAt, DType dtype)
{
    const int n = links.size();
    const int rank = links.rank();
    for (int step = 0; step + 1 < n; ++step) {
        const PieceRange out = pieceAt((rank - step - 1 + n) % n);
        const PieceRange in = pieceAt((rank - step - 2 + 2 * n) % n);
        links.exchange({(rank + 1) % n, all + out.first, out.count},
                       {(rank - 1 + n) % n, all + in.first, in.count, dtype});
    }
}

PieceAt equalPieces(std::int64_t bytes)
{
    return [bytes](int index) { return PieceRange{index * bytes, bytes}; };
}

} // namespace

PieceRange pieceOf(std::int64_t total, int pieces, int index)
{
    const std::int64_t least = total / pieces;
    const std::int64_t longer = total % pieces; // the first ones have one element more
    return {index * least + std::min<std::int64_t>(index, longer), least + (index < longer ? 1 : 0)};
}

void ringAllGather(Links& links, std::byte* all, std::int64_t partBytes)
{
    gatherPieces(links, all, equalPieces(partBytes));
}

void ringReduceScatter(Links& links, std::byte* all, std::int64_t partElements, DType dtype)
{
    reducePieces(links, all, equalPieces(partElements * elementBytes(dtype)), dtype);
}

void ringAllReduce(Links& links, std::byte* data, std::int64_t elements, DType dtype)
{
    const PieceAt pieceAt = [&](int index) {
        const PieceRange piece = pieceOf(elements, links.size(), index);
        return PieceRange{piece.first * elementBytes(dtype), piece.count * elementBytes(dtype)};
    };
    reducePieces(links, data, pieceAt, dtype);
    gatherPieces(links, data, pieceAt);
}

void chainReduce(Links& links, std::byte* data, std::int64_t elements, DType dtype, int root)
{
    const int n = links.size();
    const int place = (links.rank() - root + n) % n; // the chain runs from n - 1 down to the root at 0
    const std::int64_t bytes = elements * elementBytes(dtype);
    for (std::int64_t first = 0; first < bytes; first += kChainBytes) {
        const std::int64_t count = std::min(kChainBytes, bytes - first);
        if (place + 1 < n)
            links.exchange({}, {(links.rank() + 1) % n, data + first, count, dtype});
        if (place > 0)
            links.exchange({(links.rank() - 1 + n) % n, data + first, count}, {});
    }
}

void chainBroadcast(Links& links, std::byte* data, std::int64_t bytes, int root)
{
    const int n = links.size();
    const int place = (links.rank() - root + n) % n; // the chain runs from the root at 0 up to n - 1
    for (std::int64_t first = 0; first < bytes; first += kChainBytes) {
        const std::int64_t count = std::min(kChainBytes, bytes - first);
        if (place > 0)
            links.exchange({}, {(links.rank() - 1 + n) % n, data + first, count, std::nullopt});
        if (place + 1 < n)
            links.exchange({(links.rank() + 1) % n, data + first, count}, {});
    }
}

void pairwiseAllToAll(Links& links, const std::byte* from, std::byte* to, std::int64_t bytesEach)
{
    const int n = links.size();
    const int rank = links.rank();
    if (bytesEach > 0)
        std::memcpy(to + rank * bytesEach, from + rank * bytesEach, static_cast<std::size_t>(bytesEach));
    for (int step = 1; step < n; ++step) {
        const int target = (rank + step) % n;
        const int source = (rank - step + n) % n;
        links.exchange({target, from + target * bytesEach, bytesEach},
                       {source, to + source * bytesEach, bytesEach, std::nullopt});
    }
}

void disseminationBarrier(Links& links)
{
    const int n = links.size();
    const std::byte sign{1};
    std::byte seen{0};
    for (int distance = 1; distance < n; distance *= 2)
        links.exchange({(links.rank() + distance) % n, &sign, 1},
                       {(links.rank() - distance + n) % n, &seen, 1, std::nullopt});
}

} // namespace shardwright
