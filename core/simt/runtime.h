// The part of the CUDA runtime that the engine and its tests use, on the host. Names, arguments and
// results are CUDA's (CUDA Runtime API reference). There is no default stream. A fault in a kernel
// is not a number but a Fault, thrown by what waits next: cudaStreamSynchronize,
// cudaDeviceSynchronize, cudaEventSynchronize, the queries and copies that wait. Whatever else was
// queued is dropped then, and the device goes on. Errors that nobody waits for end the program with
// a message at its exit.
#pragma once

#include "core/simt/block.h"

namespace tessera::simt {

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNoDevice = 100,
  cudaErrorNotReady = 600,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotPermitted = 800,
  cudaErrorNotSupported = 801,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
  cudaErrorStreamCaptureMerge = 902,
  cudaErrorStreamCaptureUnmatched = 903,
  cudaErrorStreamCaptureUnjoined = 904,
  cudaErrorStreamCaptureIsolation = 905,
  cudaErrorCapturedEvent = 907,
  cudaErrorStreamCaptureWrongThread = 908,
};
const char* cudaGetErrorString(cudaError_t error);
// The last error of the calling host thread; the first forgets it.
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();

struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount, l2CacheSize;
  size_t totalGlobalMem, sharedMemPerBlockOptin;
};
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);

struct StreamState;
using cudaStream_t = StreamState*;
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
// Returns at once; what is queued is still done, when somebody waits for the device or as the
// landing has it.
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
// A query that finds work does some of it, as time passes on a GPU.
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaDeviceSynchronize();

struct EventState;
using cudaEvent_t = EventState*;
enum { cudaEventDefault = 0, cudaEventDisableTiming = 2 };
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
// Milliseconds of this host: they say nothing about a GPU.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
// Aligned to 256 bytes, filled with signalling NaNs.
cudaError_t cudaMalloc(void** pointer, size_t bytes);
// Waits for all work. cudaErrorInvalidValue for a pointer that is not (any more) an allocation.
cudaError_t cudaFree(void* pointer);
cudaError_t cudaMallocHost(void** pointer, size_t bytes);
cudaError_t cudaFreeHost(void* pointer);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
// Pinned memory (cudaMallocHost) is read or written when the copy's turn comes. Other host memory
// is read before the call returns; into it, the copy is complete when the call returns.
// cudaErrorInvalidValue where `to` or `from` is not inside of an allocation of the right kind.
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* pointer, int byte, size_t bytes, cudaStream_t stream);
// `function` must not call CUDA: cudaErrorNotPermitted.
using cudaHostFn_t = void (*)(void*);
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data);

// Stream capture: while a stream captures, what could wait or allocate (cudaMalloc, cudaFree,
// synchronisation, queries) fails and spoils the capture, in any thread (Global) or in the one that
// began it (ThreadLocal); waiting for the device always. The thread that began it ends it. Relaxed
// is not modelled. Copies from and to memory that is not pinned do not go into graphs here.
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone,
  cudaStreamCaptureStatusActive,
  cudaStreamCaptureStatusInvalidated
};
struct GraphState;
struct GraphExecState;
using cudaGraph_t = GraphState*;
using cudaGraphExec_t = GraphExecState*;
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
// *graph is null when the capture was spoilt.
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long flags = 0);
// The nodes run in an order that their dependencies allow, chosen by Options::order.
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);

// Beyond CUDA.

// Waits as cudaStreamSynchronize does, but what went wrong is thrown by the next wait: for
// destructors.
void finish_quietly(cudaStream_t stream);

// Fills memory with what memory holds that was never written: signalling NaNs.
void fill_undefined_async(void* memory, size_t bytes, cudaStream_t stream);
struct MemoryUse {
  size_t bytes = 0, blocks = 0;     // of device memory now
  uint64_t allocations = 0;         // calls of cudaMalloc so far
  uint64_t pinned_allocations = 0;  // and of cudaMallocHost
};
MemoryUse memory_use();

}  // namespace tessera::simt
