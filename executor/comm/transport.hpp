#pragma once

// How ranks talk. One interface over threads of one process, MPI, and a rank that is alone.

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "core/schedule.hpp"

namespace shardwright {

/// A rank has failed, hangs, or was told to stop: what every other rank gets instead of waiting forever.
class TransportError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// Another process has failed and says why to this one: it tells its user itself.
class HeardError : public TransportError {
public:
    using TransportError::TransportError;
};

/// What went out, by collective.
struct SentBytes {
    std::int64_t calls = 0;
    Bytes sent; // handed to the transport by this rank
};

/// The ranks of one group, seen by one of them. All ranks of the group make the same calls in the same order. Sums of
/// 16-bit elements are made in fp32 and rounded once a hop. Buffers may be of zero elements. TransportError when a rank
/// has failed or does not answer within the transport's time limit.
class Communicator {
public:
    virtual ~Communicator() = default;

    virtual int size() const = 0;
    virtual int rank() const = 0; // place in the group

    /// all = the parts of all ranks in order, of `bytes` each; `part` may lie in its place within `all`.
    virtual void allGather(const void* part, void* all, std::int64_t bytes) = 0;
    /// part = this rank's part of the sum, of `elements` (in `all` are so many for each rank), and may lie in its place
    /// within `all`, which is left undefined otherwise.
    virtual void reduceScatter(void* all, void* part, std::int64_t elements, DType dtype) = 0;
    virtual void allReduce(void* data, std::int64_t elements, DType dtype) = 0;
    /// The sum, on `root` only; elsewhere `data` is left undefined.
    virtual void reduce(void* data, std::int64_t elements, DType dtype, int root) = 0;
    virtual void broadcast(void* data, std::int64_t bytes, int root) = 0;
    /// Piece r of `from` goes to rank r; piece r of `to` came from it.
    virtual void allToAll(const void* from, void* to, std::int64_t bytesEach) = 0;
    virtual void barrier() = 0;

    /// What the last call handed to the transport.
    virtual Bytes lastSent() const = 0;
};

/// One rank's end.
class Transport {
public:
    virtual ~Transport() = default;

    virtual int ranks() const = 0;
    virtual int rank() const = 0;
    virtual std::string name() const = 0; // "threads", "mpi", "solo"

    /// The group that this rank is in: collective over its ranks, in the same order on all of them.
    virtual std::unique_ptr<Communicator> communicator(const Group& group) = 0;
    /// Sum over all ranks, apart from the counted traffic: loss, norms, votes to stop.
    virtual double sum(double value) = 0;
    /// Lets every rank's waiting call fail with `cause`. Callable from any thread, and again.
    virtual void abort(const std::string& cause) noexcept = 0;
};

} // namespace shardwright
