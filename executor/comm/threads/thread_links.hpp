#pragma once

// Point-to-point exchanges between threads: the receiver copies straight from the sender's memory.

#include "executor/comm/links.hpp"
#include "executor/comm/threads/hub.hpp"

namespace shardwright {

class ThreadLinks final : public Links {
public:
    ThreadLinks(Hub& hub, SharedGroup& group, int rank) : m_hub(hub), m_group(group), m_rank(rank) {}

    int size() const override { return static_cast<int>(m_group.ranks.size()); }
    int rank() const override { return m_rank; }

protected:
    void carry(const Outgoing& out, const Incoming& in) override;

private:
    Member& member(int rank) { return m_group.members[static_cast<std::size_t>(rank)]; }
    int globalRank() const { return m_group.ranks[static_cast<std::size_t>(m_rank)]; }
    void post(const Outgoing& out);
    void take(const Incoming& in);
    void awaitTaken(const Outgoing& out);
    void withdraw();
    std::string late(int rank) const;

    Hub& m_hub;
    SharedGroup& m_group;
    int m_rank;
};

} // namespace shardwright
