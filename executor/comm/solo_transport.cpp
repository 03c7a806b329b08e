// A rank that is alone: the rings run over links that lead nowhere and are counted; then the buffers are filled as if
// all ranks held what this one holds.

#include <cstring>
#include <stdexcept>
#include <vector>

#include <fmt/format.h>

#include "executor/comm/ring_communicator.hpp"
#include "executor/comm/transports.hpp"
#include "executor/elements.hpp"

namespace shardwright {

namespace {

class NoLinks final : public Links {
public:
    NoLinks(int size, int rank) : m_size(size), m_rank(rank) {}
    int size() const override { return m_size; }
    int rank() const override { return m_rank; }

protected:
    void carry(const Outgoing& /*out*/, const Incoming& /*in*/) override {}

private:
    int m_size;
    int m_rank;
};

class SoloCommunicator final : public RingCommunicator {
public:
    using RingCommunicator::RingCommunicator;

    void allGather(const void* part, void* all, std::int64_t bytes) override
    {
        RingCommunicator::allGather(part, all, bytes);
        repeat(static_cast<std::byte*>(all) + rank() * bytes, static_cast<std::byte*>(all), bytes);
    }
    void reduceScatter(void* all, void* part, std::int64_t elements, DType dtype) override
    {
        RingCommunicator::reduceScatter(all, part, elements, dtype);
        scaleElements(part, dtype, elements, size());
    }
    void allReduce(void* data, std::int64_t elements, DType dtype) override
    {
        RingCommunicator::allReduce(data, elements, dtype);
        scaleElements(data, dtype, elements, size());
    }
    void reduce(void* data, std::int64_t elements, DType dtype, int root) override
    {
        RingCommunicator::reduce(data, elements, dtype, root);
        if (rank() == root)
            scaleElements(data, dtype, elements, size());
    }
    void allToAll(const void* from, void* to, std::int64_t bytesEach) override
    {
        RingCommunicator::allToAll(from, to, bytesEach);
        repeat(static_cast<const std::byte*>(from) + rank() * bytesEach, static_cast<std::byte*>(to), bytesEach);
    }

private:
    /// The same piece in every rank's place.
    void repeat(const std::byte* piece, std::byte* all, std::int64_t bytes) const
    {
        for (int place = 0; bytes > 0 && place < size(); ++place)
            if (all + place * bytes != piece)
                std::memcpy(all + place * bytes, piece, static_cast<std::size_t>(bytes));
    }
};

class SoloTransport final : public Transport {
public:
    SoloTransport(int rank, int ranks) : m_rank(rank), m_ranks(ranks) {}

    int ranks() const override { return m_ranks; }
    int rank() const override { return m_rank; }
    std::string name() const override { return "solo"; }

    std::unique_ptr<Communicator> communicator(const Group& group) override
    {
        checkGroup(group, m_rank, m_ranks);
        return std::make_unique<SoloCommunicator>(
            std::make_unique<NoLinks>(static_cast<int>(group.ranks), static_cast<int>(group.placeOf(m_rank))));
    }
    double sum(double value) override { return value * m_ranks; }
    void abort(const std::string& /*cause*/) noexcept override {} // nobody waits

private:
    int m_rank;
    int m_ranks;
};

} // namespace

std::unique_ptr<Transport> makeSoloTransport(int rank, int ranks)
{
    if (rank < 0 || rank >= ranks)
        throw std::invalid_argument(fmt::format("rank {} is not one of {}", rank, ranks));
    return std::make_unique<SoloTransport>(rank, ranks);
}

} // namespace shardwright
