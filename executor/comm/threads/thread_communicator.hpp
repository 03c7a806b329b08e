#pragma once

// The collectives of ranks that are threads: small ones directly (every rank reads what it needs from the others'
// memory, between two barriers), large ones around a ring.

#include <memory>

#include "executor/comm/threads/thread_links.hpp"
#include "executor/comm/transports.hpp"

namespace shardwright {

class ThreadCommunicator final : public Communicator {
public:
    ThreadCommunicator(std::shared_ptr<Hub> hub, std::shared_ptr<SharedGroup> group, int place,
                       const ThreadTransportOptions& options);

    int size() const override { return m_links.size(); }
    int rank() const override { return m_links.rank(); }

    void allGather(const void* part, void* all, std::int64_t bytes) override;
    void reduceScatter(void* all, void* part, std::int64_t elements, DType dtype) override;
    void allReduce(void* data, std::int64_t elements, DType dtype) override;
    void reduce(void* data, std::int64_t elements, DType dtype, int root) override;
    void broadcast(void* data, std::int64_t bytes, int root) override;
    void allToAll(const void* from, void* to, std::int64_t bytesEach) override;
    void barrier() override;

    Bytes lastSent() const override { return Bytes(m_lastSent); }

    /// The sum of all ranks' values, in their order.
    double sum(double value);

private:
    template <typename Read> void betweenBarriers(const std::byte* shown, const Read& read);

    void begin(const Call& call);
    void arrive();
    void checkCalls();
    bool takesRing(std::int64_t payloadBytes) const;
    Member& member(int rank) { return m_group->members[static_cast<std::size_t>(rank)]; }
    std::vector<const std::byte*> shownAt(std::int64_t offset);

    std::shared_ptr<Hub> m_hub;
    std::shared_ptr<SharedGroup> m_group;
    ThreadLinks m_links;
    ThreadTransportOptions m_options;
    std::int64_t m_barriers = 0; // gone through
    std::int64_t m_lastSent = 0;
};

} // namespace shardwright
