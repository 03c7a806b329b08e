#pragma once

// What ring algorithms need of a transport: point-to-point exchanges between the ranks of a group.

#include <cstddef>
#include <cstdint>
#include <optional>

#include "core/dtype.hpp"

namespace shardwright {

struct Outgoing {
    int to = 0; // place in the group
    const std::byte* data = nullptr;
    std::int64_t bytes = 0;
};

struct Incoming {
    int from = 0;
    std::byte* into = nullptr; // what comes is stored here,
    std::int64_t bytes = 0;
    std::optional<DType> added; // or added to the elements of this type that stand here
};

/// One rank's links to the others of its group.
class Links {
public:
    virtual ~Links() = default;

    virtual int size() const = 0;
    virtual int rank() const = 0;

    /// Sends and receives at once; on return `out` may be changed and `in` is there. A direction of 0 bytes does not
    /// take place: both its ends know the size. TransportError as for Communicator.
    void exchange(const Outgoing& out, const Incoming& in)
    {
        carry(out, in);
        m_sent += out.bytes;
    }

    std::int64_t sentBytes() const { return m_sent; } // since the links were made

protected:
    virtual void carry(const Outgoing& out, const Incoming& in) = 0;

private:
    std::int64_t m_sent = 0;
};

} // namespace shardwright
