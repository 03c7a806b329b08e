#pragma once

// Collectives in which a rank talks to its neighbours only, over any transport's links. Each element of a sum is added
// hop by hop, rounded once a hop where it has 16 bits, as NCCL's rings do. What a rank sends of a payload of S bytes:
// all-gather and reduce-scatter S (n-1)/n, all-reduce 2 S (n-1)/n, reduce and broadcast S (the last of the chain
// nothing), all-to-all S (n-1)/n. Buffers as in Communicator.

#include "executor/comm/links.hpp"

namespace shardwright {

/// Place of piece `index` of `total` elements in `pieces` pieces that differ by one element at most.
struct PieceRange {
    std::int64_t first = 0;
    std::int64_t count = 0;
};
PieceRange pieceOf(std::int64_t total, int pieces, int index);

/// This rank's part stands in its place within `all`.
void ringAllGather(Links& links, std::byte* all, std::int64_t partBytes);
/// This rank's part of the sum is left in its place within `all`.
void ringReduceScatter(Links& links, std::byte* all, std::int64_t partElements, DType dtype);
void ringAllReduce(Links& links, std::byte* data, std::int64_t elements, DType dtype);
void chainReduce(Links& links, std::byte* data, std::int64_t elements, DType dtype, int root);
void chainBroadcast(Links& links, std::byte* data, std::int64_t bytes, int root);
/// Every pair of ranks exchanges its pieces; in step k with those k places away.
void pairwiseAllToAll(Links& links, const std::byte* from, std::byte* to, std::int64_t bytesEach);
/// Returns when all ranks have come, after log2(n) exchanges of one byte.
void disseminationBarrier(Links& links);

} // namespace shardwright
