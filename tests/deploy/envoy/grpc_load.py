"""Clients that ask for a forward pass again and again, each when it has been answered, until standard input ends.

usage: grpc_load.py ADDRESS CA TOKEN DESCRIPTORS CLIENTS PIXELS
Writes "ok" for each answer, and why for each failure.
"""

import sys
import threading
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

ADDRESS, CA, TOKEN, DESCRIPTORS, CLIENTS, PIXELS = sys.argv[1:]
MUTEX = threading.Lock()
FORWARD = "/ditserve.v1.TransformerService/Forward"


def request(pixels: int) -> bytes:
    files = descriptor_pb2.FileDescriptorSet.FromString(Path(DESCRIPTORS).read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    forward = message_factory.GetMessageClass(pool.FindMessageTypeByName("ditserve.v1.ForwardRequest"))(
        height=pixels, width=pixels, profile="disk")
    for name, shape in (("latents", (1, 16, pixels // 8, pixels // 8)), ("timestep", (1,)), ("prompt_emb", (1, 3, 3584))):
        tensor = getattr(forward, name)
        tensor.dtype = tensor.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_name["DTYPE_FLOAT32"].number
        tensor.shape.extend(shape)
        count = 1
        for size in shape:
            count *= size
        tensor.data = bytes(4 * count)
    return forward.SerializeToString()


def say(line: str) -> None:
    with MUTEX:
        print(line, flush=True)


def main() -> None:
    body, stop = request(int(PIXELS)), threading.Event()
    credentials = grpc.ssl_channel_credentials(Path(CA).read_bytes())
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]

    def ask() -> None:
        with grpc.secure_channel(ADDRESS, credentials, options) as channel:
            forward = channel.unary_unary(FORWARD, lambda request: request, lambda response: response)
            while not stop.is_set():
                try:
                    forward(body, metadata=[("authorization", f"Bearer {TOKEN}")])
                    say("ok")
                except grpc.RpcError as error:
                    say(f"{error.code().name}: {error.details()}")

    clients = [threading.Thread(target=ask) for _ in range(int(CLIENTS))]
    for client in clients:
        client.start()
    sys.stdin.read()
    stop.set()
    for client in clients:
        client.join()


if __name__ == "__main__":
    main()
