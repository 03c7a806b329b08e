#pragma once

// A communicator that knows nothing but links to single ranks.

#include <functional>
#include <memory>

#include "executor/comm/links.hpp"
#include "executor/comm/transport.hpp"

namespace shardwright {

/// Bytes of elements that collectives can sum; std::invalid_argument for others.
std::int64_t bytesOfSum(std::int64_t elements, DType dtype);

/// std::invalid_argument where the group that `rank` is in has ranks that the transport does not.
void checkGroup(const Group& group, int rank, int ranks);

class RingCommunicator : public Communicator {
public:
    explicit RingCommunicator(std::unique_ptr<Links> links) : m_links(std::move(links)) {}

    int size() const override { return m_links->size(); }
    int rank() const override { return m_links->rank(); }

    void allGather(const void* part, void* all, std::int64_t bytes) override;
    void reduceScatter(void* all, void* part, std::int64_t elements, DType dtype) override;
    void allReduce(void* data, std::int64_t elements, DType dtype) override;
    void reduce(void* data, std::int64_t elements, DType dtype, int root) override;
    void broadcast(void* data, std::int64_t bytes, int root) override;
    void allToAll(const void* from, void* to, std::int64_t bytesEach) override;
    void barrier() override;

    Bytes lastSent() const override { return Bytes(m_lastSent); }

protected:
    /// Called before each collective, with a literal.
    virtual void begin(const char* /*call*/) {}

private:
    void count(const char* call, const std::function<void()>& collective);

    std::unique_ptr<Links> m_links;
    std::int64_t m_lastSent = 0;
};

} // namespace shardwright
