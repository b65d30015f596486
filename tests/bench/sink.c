// An object store that costs nothing: PUT bodies are read and dropped, GETs answer with bytes of a fixed buffer.
// One thread a connection. Usage: sink PORT_FILE [BYTES_PER_SECOND]
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BLOCK (1 << 20)
#define SERVED ((size_t)64 << 20)  // the size of every object

static char *served;
static double bytes_per_second;
static pthread_mutex_t bucket = PTHREAD_MUTEX_INITIALIZER;
static double next_free;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

// All connections share one link of the given bandwidth.
static void throttle(size_t bytes) {
  if (bytes_per_second <= 0) return;
  pthread_mutex_lock(&bucket);
  double start = next_free > now() ? next_free : now();
  next_free = start + bytes / bytes_per_second;
  double wait = next_free - now();
  pthread_mutex_unlock(&bucket);
  if (wait > 0) usleep((useconds_t)(wait * 1e6));
}

static int send_all(int fd, const char *data, size_t size) {
  while (size) {
    ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
    if (n <= 0) return -1;
    data += n;
    size -= n;
  }
  return 0;
}

static const char *header(const char *head, const char *name) {
  const char *found = strcasestr(head, name);
  return found ? found + strlen(name) : NULL;
}

static void *serve(void *argument) {
  int fd = (int)(long)argument, one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  char *block = malloc(BLOCK + 1);
  size_t have = 0;
  for (;;) {
    char *end;
    block[have] = 0;
    while (!(end = strstr(block, "\r\n\r\n"))) {
      ssize_t n = recv(fd, block + have, 65536, 0);
      if (n <= 0) goto out;
      have += n;
      block[have] = 0;
    }
    size_t head = end - block + 4;
    *end = 0;
    const char *value = header(block, "content-length:");
    size_t body = value ? strtoull(value, NULL, 10) : 0;
    const char *range = header(block, "range: bytes=");
    size_t from = 0, to = SERVED - 1;
    if (range) sscanf(range, "%zu-%zu", &from, &to);
    int get = !strncmp(block, "GET", 3), is_head = !strncmp(block, "HEAD", 4);
    if (header(block, "expect: 100")) send_all(fd, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    size_t inbody = have - head < body ? have - head : body, left = body - inbody;
    throttle(inbody);
    memmove(block, block + head + inbody, have -= head + inbody);
    while (left) {
      ssize_t n = recv(fd, block, left < BLOCK ? left : BLOCK, 0);
      if (n <= 0) goto out;
      throttle(n);
      left -= n;
      have = 0;
    }
    char answer[512];
    size_t size = get || is_head ? to - from + 1 : 0;
    int length = snprintf(answer, sizeof answer,
                          "HTTP/1.1 %s\r\nContent-Length: %zu\r\nETag: \"1\"\r\n"
                          "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Range: bytes %zu-%zu/%zu\r\n\r\n",
                          get && range ? "206 Partial Content" : "200 OK", size, from, to, SERVED);
    if (send_all(fd, answer, length)) goto out;
    while (get && size) {
      size_t offset = from % SERVED, part = size;
      if (part > SERVED - offset) part = SERVED - offset;
      if (part > BLOCK) part = BLOCK;
      throttle(part);
      if (send_all(fd, served + offset, part)) goto out;
      from += part;
      size -= part;
    }
  }
out:
  close(fd);
  free(block);
  return NULL;
}

int main(int count, char **arguments) {
  bytes_per_second = count > 2 ? atof(arguments[2]) : 0;
  served = malloc(SERVED);
  for (size_t i = 0; i < SERVED; i++) served[i] = (char)((i * 2654435761u) >> 13);
  int server = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  if (bind(server, (struct sockaddr *)&address, size) || listen(server, 128)) return 1;
  getsockname(server, (struct sockaddr *)&address, &size);
  FILE *file = fopen(arguments[1], "w");
  fprintf(file, "%d\n", ntohs(address.sin_port));
  fclose(file);
  for (;;) {
    int fd = accept(server, NULL, NULL);
    pthread_t thread;
    if (fd >= 0 && !pthread_create(&thread, NULL, serve, (void *)(long)fd)) pthread_detach(thread);
  }
}
