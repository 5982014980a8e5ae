// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * A scheduler as a program that serves statistics, and misbehaves on request: a child of it holds
 * the scheduler, itself it answers on the socket. The target of a request says how.
 *
 * statsched HOLDER OBJECT
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static const char *const path = "/var/run/scx/root/stats";
static unsigned long asked;

static void say(int fd, const char *text)
{
	size_t left = strlen(text);

	while (left) {
		ssize_t n = send(fd, text, left, MSG_NOSIGNAL);
		if (n <= 0)
			return;
		text += n;
		left -= n;
	}
}

static void answer(int fd, const char *line)
{
	char text[256];

	if (strstr(line, "stats_meta")) {
		say(fd, "{\"errno\":0,\"args\":{\"resp\":{\"nr_asked\":\"how often it was asked\"}}}\n");
	} else if (strstr(line, "\"top\"")) {
		snprintf(text, sizeof(text),
			 "{\"errno\":0,\"args\":{\"resp\":{\"nr_asked\":%lu,\"cpus\":[{\"load\":0.5}]}}}\n",
			 ++asked);
		say(fd, text);
	} else if (strstr(line, "\"slow\"")) {
		const char *all = "{\"errno\":0,\"args\":{\"resp\":{\"slow\":true}}}\n";
		char one[2] = "";

		for (; *all; all++) {
			one[0] = *all;
			say(fd, one);
			usleep(2000);
		}
	} else if (strstr(line, "\"silent\"")) {
		/* The connection stays open until whoever asked gives up. */
		char byte;

		while (recv(fd, &byte, 1, 0) > 0)
			;
	} else if (strstr(line, "\"half\"")) {
		say(fd, "{\"errno\":0,");
	} else if (strstr(line, "\"flood\"")) {
		for (int i = 0; i < 300; i++) {
			static char block[1025];

			memset(block, 'x', 1024);
			say(fd, block);
		}
		say(fd, "\n");
	} else if (strstr(line, "\"garbage\"")) {
		say(fd, "hello\n");
	} else if (strstr(line, "\"bytes\"")) {
		say(fd, "\xff\xfe\n");
	} else if (strstr(line, "\"bare\"")) {
		say(fd, "{\"errno\":0,\"args\":{\"other\":1}}\n");
	} else if (strstr(line, "\"deep\"")) {
		for (int i = 0; i < 20000; i++)
			say(fd, "[");
		say(fd, "\n");
	} else if (!strstr(line, "\"close\"")) {
		say(fd, "{\"errno\":22,\"args\":{\"resp\":\"no such target\"}}\n");
	}
}

static void serve(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	mkdir("/var", 0755);
	mkdir("/var/run", 0755);
	mkdir("/var/run/scx", 0755);
	mkdir("/var/run/scx/root", 0755);
	unlink(path);
	strcpy(addr.sun_path, path);
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 8)) {
		perror(path);
		exit(1);
	}
	printf("serving\n");
	fflush(stdout);
	for (;;) {
		int conn = accept(fd, NULL, NULL);
		static char line[300 << 10];
		size_t len = 0;

		while (len < sizeof(line) - 1) {
			ssize_t n = recv(conn, line + len, sizeof(line) - 1 - len, 0);
			if (n <= 0)
				break;
			len += n;
			if (line[len - 1] == '\n')
				break;
		}
		line[len] = 0;
		answer(conn, line);
		close(conn);
	}
}

int main(int argc, char **argv)
{
	pid_t server;

	if (argc < 3)
		return 2;
	server = fork();
	if (server == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve();
	}
	execl(argv[1], argv[1], "hold", argv[2], NULL);
	perror(argv[1]);
	return 1;
}
